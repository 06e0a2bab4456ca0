"""The training loop: epochs, steps, checkpoints. Everything that happens is a function of the seed and the data."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ...ir.errors import PassError, UsageError
from ...ir.graph import Graph
from ..base import Context, Skip
from ..quantize.placement import ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER
from ..sparsity import masks
from .batches import Counted, Epochs, windows
from .best import Best, load_weights
from .checkpoint import Checkpoints, Snapshot, weights_digest
from .grid_biases import GridBiases
from .learned_scales import LARGEST_CHANGE, LearnedScales, check_calibrated
from .objective import Objective
from .optimizers import (
    NORMALISING,
    OPTIMIZERS,
    OptimizerState,
    load_optimizer_state,
    optimizer_state,
    parameter_groups,
)
from .processes import Processes
from .random_streams import RandomStream, set_torch_states, torch_states
from .removal import parse_removal, removed_entries, zero_filters
from .schedule import rate_factor
from .step import Stepper
from .training_form import unique_weights

if TYPE_CHECKING:
    from .finetune import Finetune

MODEL_STREAM, EVALUATION_STREAM = 0, 2  # the numbers that keep streams apart; the data's is in batches.py


@dataclass
class Position:
    """Where a training is, all of it in checkpoints.

    epoch, batch   complete epochs, and batches of the next one that this process has seen
    step           optimizer steps so far
    losses, rates  by epoch the mean loss of its steps and the learning rate of the last one
    metrics        what `evaluate` gave before training and after each epoch
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    epoch_loss: float = 0.0
    epoch_steps: int = 0
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)


class Training:
    """One run of the training loop on a graph, whose weights are trained in place.

    momentum: what an optimizer remembered of weights of the same names and shapes, to go on with.

    Raises UsageError for a graph without trainable weights, missing or bad data, a loss that is no finite number, and
    for a checkpoint that is damaged or of another run.
    """

    def __init__(self, graph: Graph, ctx: Context, options: "Finetune", momentum: OptimizerState | None = None):
        self.graph, self.ctx, self.options, self.where = graph, ctx, options, options.name
        self.quantizers = self._quantizers()
        self.scales: LearnedScales | None = None
        self.biases = GridBiases(graph)
        self.parameters = trainable(graph, self.where, may_be_none=options.scales == "learned")
        self.processes = Processes(graph, options.seed, self.where)
        self._home = next(iter(graph.weights.values())).device
        self.epochs = Epochs(
            graph, ctx, self.processes, seed=options.seed, labelled=options.distill < 1, where=self.where
        )
        self.total = self._total_steps()
        self.position, self.best = Position(), Best(options.early_stop)
        self.checkpoints = self._checkpoints(momentum or {})
        graph.module.to(self.processes.device)
        self.momentum = momentum or {}

    def run(self) -> OptimizerState:
        """Train; returns what the optimizer remembers. Global generators are left as they were."""
        try:
            with RandomStream(self.options.seed, MODEL_STREAM, self.processes.rank).active():
                self._prepare()
                self._resume()
                if not self.position.metrics:
                    self._measure()
                while not self._is_done():
                    self._epoch()
            if self.options.early_stop and self.best.weights:
                load_weights(self.graph, self.best.weights)
            self.biases.write()
        finally:
            self.epochs.release()
            self.graph.module.to(self._home)
        return optimizer_state(self.optimizer, self.parameters)

    def details(self) -> dict[str, Any]:
        """JSON-able facts: steps, by epoch the mean loss and the last learning rate, the metric, whether it stopped."""
        position = self.position
        found: dict[str, Any] = {
            "steps": position.step,
            "epochs": position.epoch,
            "processes": self.processes.count,
            "loss": position.losses,
            "learning_rate": position.rates,
        }
        if position.metrics:
            after = self.best.metric if self.options.early_stop else position.metrics[-1]
            found |= {"metric": [position.metrics[0], after], "metrics": position.metrics}
        if self.options.early_stop:
            found["stopped_early"] = self._has_budget()
        if self.quantizers:
            found["scales"] = self.options.scales
        if self.scales is not None:
            found |= {"learned_scales": len(self.scales.parameters), "largest_scale_change": self.scales.change()}
        return found

    def notes(self) -> tuple[Skip, ...]:
        """What a report should say of scales."""
        lost = self.scales.at_limit() if self.scales is not None else []
        why = f"training moved it to its limit, {LARGEST_CHANGE:g} times off the calibrated one"
        return tuple(Skip(f"scale '{name}'", f"{why}; lower 'lr', or use optimizer=adamw") for name in lost)

    # ------------------------------------------------------------ before the first step

    def _quantizers(self) -> list[fx.Node]:
        """Raises UsageError for quantizers without scales, and where scales are to be learned and there are none."""
        found = self.graph.calls(ACTIVATION_QUANTIZER, WEIGHT_QUANTIZER)
        check_calibrated(found, self.graph, self.where)
        if self.options.scales == "learned" and not found:
            what = "scales=learned is given, and the graph has no quantizers"
            raise UsageError(self.where, what, "put 'insert-fake-quant' and 'calibrate' before")
        return found

    def _prepare(self) -> None:
        """Optimizer, objective and masks, made of the weights as they were given, also where a checkpoint follows."""
        options, weights = self.options, list(self.parameters.values())
        if options.scales == "learned":
            self.scales = LearnedScales(self.graph, relative=options.optimizer in NORMALISING)
            self.parameters |= self.scales.parameters
        objective = Objective.of(self.graph, options, self.ctx, self.processes.device, self.scales, self.biases)
        groups = parameter_groups(weights, self.scales.parameters.values() if self.scales else ())
        self.optimizer = OPTIMIZERS[options.optimizer](groups, options)
        load_optimizer_state(self.optimizer, self.parameters, self.momentum)
        keep = [(self.graph.weight(name), mask) for name, mask in masks(self.graph).items()]
        self.stepper = Stepper(self.processes, objective, self.optimizer, self.parameters, keep, options, self.scales)
        self.removal = parse_removal(options.removal) if options.soft else None

    def _total_steps(self) -> int | None:
        """The number of steps; None where only the number of epochs is known."""
        options = self.options
        if options.steps is not None:
            return options.steps
        if self.epochs.length is not None:
            if self.epochs.length == 0:
                raise UsageError(self.where, "the loader is empty", "give at least one batch for each process")
            return self._epochs_wanted * math.ceil(self.epochs.length / options.accumulate)
        if options.schedule != "constant":
            what = f"schedule '{options.schedule}' needs the number of steps, and the loader has no length"
            raise UsageError(self.where, what, "give 'steps', or use schedule=constant")
        return None

    @property
    def _epochs_wanted(self) -> int:
        return self.options.epochs or 1

    def _checkpoints(self, momentum: OptimizerState) -> Checkpoints | None:
        if not self.options.checkpoint:
            return None
        identity = {
            "list of options": str(dataclasses.replace(self.options, checkpoint="", checkpoint_every=0)),
            "number of processes": str(self.processes.count),
            "model": weights_digest(self.graph),
            "momentum": str(sorted(momentum)),
        }
        return Checkpoints(self.options.checkpoint, identity)

    def _resume(self) -> None:
        if self.checkpoints is None:
            return
        found = self.checkpoints.load()
        self.processes.agree(found.numbers["position"]["step"] if found else -1, self.where)
        if found is None:
            return
        load_weights(self.graph, found.weights)
        if self.scales is not None:
            self.scales.load_state(found.weights)
        load_optimizer_state(self.optimizer, self.parameters, found.optimizer)
        self.stepper.scaler.load_state_dict(found.numbers["scaler"])
        self.best.resume(found.numbers["best"], found.best)
        self.position = Position(**found.numbers["position"])
        mine = f"{self.processes.rank}."
        set_torch_states({k.removeprefix(mine): v for k, v in found.random.items() if k.startswith(mine)})

    # ------------------------------------------------------------ epochs and steps

    def _has_budget(self) -> bool:
        if self.total is not None:
            return self.position.step < self.total
        return self.position.epoch < self._epochs_wanted

    def _is_done(self) -> bool:
        return self.best.gives_up or not self._has_budget()

    def _epoch(self) -> None:
        """One pass over the data, or what is left of it."""
        position, options = self.position, self.options
        steps = windows(self.epochs.read(position.epoch, position.batch), options.accumulate)
        for window in self.ctx.progress(self._counted(steps), f"{self.where}, epoch {position.epoch + 1}"):
            rate = options.lr * rate_factor(options.schedule, position.step, self.total, options.warmup)
            place = f"{self.where}, step {position.step + 1}, epoch {position.epoch + 1}, batch {position.batch + 1}"
            loss = self.stepper(window, rate, position.step, place)
            position.step, position.batch = position.step + 1, position.batch + len(window)
            position.epoch_loss, position.epoch_steps = position.epoch_loss + loss, position.epoch_steps + 1
            if not self._has_step_left():
                break
            if options.checkpoint_every and position.step % options.checkpoint_every == 0:
                self._save()
        self._end_epoch(options.lr * rate_factor(options.schedule, position.step - 1, self.total, options.warmup))

    def _has_step_left(self) -> bool:
        return self.total is None or self.position.step < self.total

    def _counted(self, steps: Any) -> Any:
        if self.epochs.length is None or self.total is None:
            return steps
        left = math.ceil(max(self.epochs.length - self.position.batch, 0) / self.options.accumulate)
        return Counted(steps, min(left, self.total - self.position.step))

    def _end_epoch(self, rate: float) -> None:
        position = self.position
        self._average_statistics()
        if self.removal is not None:
            zero_filters(self.graph, removed_entries(self.graph, self.removal, self.ctx))
        position.losses.append(position.epoch_loss / max(position.epoch_steps, 1))
        position.rates.append(rate)
        position.epoch, position.batch, position.epoch_loss, position.epoch_steps = position.epoch + 1, 0, 0.0, 0
        metric = self._measure()
        if metric is not None and self.options.early_stop:
            self.best.see(metric, self.graph)
        self._save()

    def _measure(self) -> float | None:
        """The metric now, noted; it cannot move the training's random numbers."""
        if self.ctx.evaluate is None:
            return None
        stream = RandomStream(self.options.seed, EVALUATION_STREAM)
        with self.biases.written(), stream.active(), torch.no_grad():
            metric = self.processes.from_main(float(self.ctx.evaluate(self.graph)))
        if math.isnan(metric):
            raise UsageError(self.where, "'evaluate' gave NaN", "expected a number, higher is better")
        if self.graph.module.training:
            raise PassError(self.where, "'evaluate' left the graph in training form", "let it call graph.eval() again")
        self.position.metrics.append(metric)
        return metric

    def _average_statistics(self) -> None:
        """Batch norms of all processes agree again."""
        weights = unique_weights(self.graph).values()
        with torch.no_grad():
            self.processes.average(w for w in weights if not isinstance(w, torch.nn.Parameter))

    def _save(self) -> None:
        """Every process gives its random state, the main one writes."""
        if self.checkpoints is None:
            return
        self._average_statistics()
        gathered = {name: self.processes.gather(state) for name, state in torch_states().items()}
        if self.processes.is_main:
            random = {f"{rank}.{name}": s for name, states in gathered.items() for rank, s in enumerate(states)}
            numbers = {
                "position": dataclasses.asdict(self.position),
                "best": self.best.numbers(),
                "scaler": self.stepper.scaler.state_dict(),
            }
            state = optimizer_state(self.optimizer, self.parameters)
            weights = unique_weights(self.graph) | (self.scales.state() if self.scales else {})
            self.checkpoints.save(self.position.step, Snapshot(weights, state, random, numbers, self.best.weights))
        self.processes.wait()


def trainable(graph: Graph, where: str, *, may_be_none: bool = False) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name. Raises UsageError where there are none and there have to be."""
    found = {name: p for name, p in graph.parameters.items() if p.requires_grad and p.is_floating_point()}
    if not found and not may_be_none:
        count = len(graph.parameters)
        what = f"none of the model's {count} parameters is trainable"
        raise UsageError(where, what, "expected at least one with requires_grad=True")
    return found
