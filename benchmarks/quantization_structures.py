"""Whole networks in integers: the share of their multiply-accumulates, equality, and time against their float selves.

    python benchmarks/quantization_structures.py [--only NAME ...] [--threads 1]

Weights are random, which speed and equality do not mind. The models come from torchvision and transformers, which are
best installed in a virtual environment of their own: torch==2.14.1 torchvision==0.29.1 transformers.

equal: what is compiled gives the bytes of the integer graph in PyTorch; close: float ops are left (layer norm,
attention), and differ in summation order. int8 / float: time of one image, least and median, in one run.
"""

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from timing import interleaved

import planish
from planish.backends.tvm.threads import set_threads

FLOAT = "canonicalize, fold-batch-norm"
INTEGERS = f"{FLOAT}, insert-fake-quant{{activations=target}}, calibrate, lower-integers"
CLOSE = 0.05  # of the largest output: where floats are quantized again, a rounding error can move one by a step


def torchvision_model(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    import torchvision

    return torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224)


def bert() -> tuple[torch.nn.Module, torch.Tensor]:
    """BERT-mini: 4 layers of 256, 64 tokens given as embeddings."""
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = BertModel(config).encoder

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.encoder(x)[0]

    return Encoder().eval(), torch.randn(1, 64, 256)


NAMES = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "vit_b_32")
MODELS: dict[str, Callable[[], tuple[torch.nn.Module, torch.Tensor]]] = {
    **{name: (lambda name=name: torchvision_model(name)) for name in NAMES},
    "bert_mini": bert,
}


@dataclass(frozen=True)
class Row:
    name: str
    macs: float
    kernels: str
    sameness: str
    times: dict[str, tuple[float, float]]


def measure(name: str, rounds: int) -> Row:
    torch.manual_seed(0)
    model, x = MODELS[name]()
    captured = planish.capture(model, (x,))
    context = planish.Context(data=[torch.randn(4, *x.shape[1:])], target=planish.Target.get("local"))
    outcome = planish.Pipeline.parse(INTEGERS).run(captured, context)
    compiled = planish.compile(outcome.graph, recipe="", batch=1)
    floats = planish.compile(captured, recipe=FLOAT, batch=1)
    timings = interleaved({"int8": lambda: compiled(x), "float": lambda: floats(x)}, rounds)
    return Row(
        name,
        outcome.steps[-1].result.details["integer_macs"],
        compiled.report.int8_kernels,
        _sameness(compiled, x),
        {kind: (timing.least, timing.median) for kind, timing in timings.items()},
    )


def _sameness(compiled: planish.CompiledModel, x: torch.Tensor) -> str:
    got, wanted = compiled(x), compiled.graph(x)
    if torch.equal(got, wanted):
        return "equal"
    error = float((got - wanted).abs().max() / wanted.abs().max())
    return f"close, {error:.0e}" if not compiled.report.exact and error < CLOSE else f"WRONG, {error:.0e}"


def table(rows: list[Row]) -> Table:
    shown = Table(title="int8 against float, one image, random weights", title_justify="left")
    for heading in (
        "",
        "MACs in integers",
        "int8 kernels",
        "against PyTorch",
        "int8 ms",
        "float ms",
        "least",
        "median",
    ):
        shown.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        (least, median), (float_least, float_median) = row.times["int8"], row.times["float"]
        ratios = f"{least / float_least:.2f}", f"{median / float_median:.2f}"
        times = f"{least:.2f}", f"{float_least:.2f}"
        shown.add_row(row.name, f"{100 * row.macs:.1f} %", row.kernels, row.sameness, *times, *ratios)
    return shown


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    chosen, console = parser.parse_args(), Console(width=120)
    torch.set_num_threads(chosen.threads)
    set_threads(chosen.threads)
    torch.set_grad_enabled(False)
    rows = []
    for name in chosen.only:
        rows.append(measure(name, chosen.rounds))
        console.log(rows[-1])
    console.print(table(rows))


if __name__ == "__main__":
    main()
