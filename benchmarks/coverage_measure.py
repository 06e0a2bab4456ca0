"""One model of the coverage benchmark, measured in a process of its own: capture, prune, prove, run, train.

    python benchmarks/coverage_measure.py ZOO NAME RESULT.json SECONDS

Times are seconds of processor time of one thread in a fresh process; after SECONDS of it the system ends the process.
"""

import json
import resource
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from coverage_steps import Watch, prune
from coverage_zoo import Entry, add_noise, entries
from torch.utils import _pytree as pytree

import planish

NOTHING_TO_REMOVE = "no channel of the model can be removed"


def measure(entry: Entry) -> dict[str, Any]:
    """The row of one model: how far it came (capture, prune, run, done), seconds by step, and what was found."""
    watch = Watch()
    row: dict[str, Any] = {"name": entry.name, "stage": "build", "seconds": watch.seconds, "parts": {}}
    row["commit"] = commit()
    try:
        with watch.step("build"):
            model = add_noise(entry.build()).eval()
        (_measure_parts if entry.targets else _measure_whole)(entry, model, row, watch)
        row["stage"] = "done"
    except Exception as error:
        row |= {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return row


def _measure_whole(entry: Entry, model: torch.nn.Module, row: dict[str, Any], watch: Watch) -> None:
    """A model that is captured whole is run at batch 1 and 2 in eval form and trained for one step."""
    args = entry.inputs()
    row["stage"] = "capture"
    with watch.step("capture"):
        graph = planish.capture(model, args)
    row["stage"] = "prune"
    row["parts"] = {"": prune(graph, watch)}
    row["stage"] = "run"
    is_dynamic = any(isinstance(extent, str) for spec in graph.inputs for extent in spec.shape)
    row["batches"] = [1, 2] if is_dynamic else [1]
    with watch.step("run"):
        for batch in row["batches"]:
            with torch.no_grad():
                check_finite("forward", graph(*repeated(args, batch)))
        graph.train()
        check_gradients(graph.module, graph(*repeated(args, row["batches"][-1])))


def _measure_parts(entry: Entry, model: torch.nn.Module, row: dict[str, Any], watch: Watch) -> None:
    """A detector: every part that was captured is pruned, and the whole is run and trained with the pruned parts."""
    assert entry.targets is not None
    args = entry.inputs()
    row["stage"] = "capture"
    with watch.step("capture"):
        parts = planish.capture_parts(model, args)
    row["stage"] = "prune"
    row["eager"] = [str(eager) for eager in parts.eager]
    pruned: dict[str, planish.Graph] = {}
    for name, graph in parts.graphs.items():
        pruned[name] = graph.copy()
        try:
            row["parts"][name] = prune(pruned[name], watch)
        except planish.PlanishError as error:
            if NOTHING_TO_REMOVE not in str(error):
                raise
            row["parts"][name] = {"untouched": str(error)}
    row["stage"] = "run"
    thin = parts.module_with(pruned)
    row["batches"] = [len(args[0])]
    with watch.step("run"):
        with torch.no_grad():
            check_finite("forward", thin(*args))
        check_gradients(thin.train(), thin(*args, entry.targets()))


def repeated(args: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    """The example inputs `batch` times."""
    return pytree.tree_map_only(torch.Tensor, lambda tensor: torch.cat([tensor] * batch), args)


def check_gradients(module: torch.nn.Module, outputs: Any) -> None:
    """One step back from the mean square of all outputs: gradients are there and finite."""
    losses = [tensor.double().square().mean() for tensor in _floats(outputs)]
    check_finite("training forward", losses)
    torch.stack(losses).sum().backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    if not gradients:
        raise ArithmeticError("backward of the cut model reaches no parameter")
    check_finite("backward", gradients)


def check_finite(where: str, value: Any) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in _floats(value)):
        raise ArithmeticError(f"{where} of the cut model gives NaN or infinity")


def _floats(value: Any) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def commit() -> str | None:
    """The commit of the package's own checkout, where it is one."""
    command = ["git", "-C", str(Path(planish.__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or None


def main() -> None:
    zoo, name, path, seconds = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (entry,) = entries(zoo, name)
    Path(path).write_text(json.dumps(measure(entry), indent=1))


if __name__ == "__main__":
    main()
