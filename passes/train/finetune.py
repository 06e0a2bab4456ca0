"""finetune: train a model's weights, alone or on many machines, from labels or from the unpruned model."""

from dataclasses import dataclass
from typing import ClassVar

from ...ir.errors import UsageError
from ...ir.graph import Graph
from ..base import Context, Pass, Result
from ..pipeline_text import did_you_mean
from .loop import Training
from .objective import AMP_TYPES
from .optimizers import OPTIMIZERS, OptimizerState
from .regularizers import REGULARIZERS
from .removal import parse_removal
from .schedule import SCHEDULES

# What a training did, and what its optimizer remembers.
Trained = tuple[Result, OptimizerState]


@dataclass(frozen=True)
class Finetune(Pass):
    """Train the weights on `Context.data` with `Context.loss`; what is frozen (requires_grad=False) stays.

    before:  %y = conv2d(%x, w[64,32,3,3], b[64])
    after:   %y = conv2d(%x, w[64,32,3,3], b[64]), with other numbers in w and b
    skips:   a learned scale that has moved to its limit; what cannot be trained is an error

    Batch norm and dropout are in training form while it runs, and the graph is in eval form afterwards. The zeros of
    sparse weights stay. A calibrated graph is trained through its quantizers with straight-through gradients
    (quantization-aware training), and stays calibrated. The same data, seed and number of threads give the same
    weights. Needs the extra `train` (accelerate); started by `torchrun`, every process trains on its share of the
    batches and all end with one result.
    """

    name: ClassVar[str] = "finetune"
    needs: ClassVar[frozenset[str]] = frozenset({"data"})
    refuses: ClassVar[frozenset[str]] = frozenset({"integers"})  # they have no gradient

    epochs: int | None = None
    """Passes over the data; 1 where neither this nor `steps` is given."""
    steps: int | None = None
    """Instead: how many steps of the optimizer. The data is read again as often as that takes."""
    optimizer: str = "sgd"
    """sgd, adamw."""
    lr: float = 0.01
    """The learning rate at its highest."""
    momentum: float = 0.9
    """Of sgd; for adamw its first beta."""
    nesterov: bool = False
    """Nesterov's form of sgd's momentum."""
    weight_decay: float = 0.0
    """Of all trained weights; for adamw decoupled from the gradient."""
    schedule: str = "cosine"
    """cosine or linear: the rate falls to zero until the last step. constant."""
    warmup: int = 0
    """Steps at the start in which the rate rises to `lr`."""
    amp: str = "no"
    """The type that the model's products are computed in: no (as the weights are), bf16, fp16 with a scaled loss."""
    clip: float = 0.0
    """The highest norm of all gradients together; larger ones are scaled down to it. 0: any."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    seed: int = 0
    """Of dropout, of the data's order and of whatever the loader draws."""
    checkpoint: str = ""
    """A folder. The state is saved there, and a run with the same options that finds one goes on exactly from it."""
    checkpoint_every: int = 0
    """Steps between checkpoints. One is written after each epoch in any case."""
    early_stop: int = 0
    """Stop after so many epochs without a better `Context.evaluate`, and go back to the best weights. 0: never."""
    label_smoothing: float = 0.0
    """For the default loss, cross-entropy: the share of the label that is spread over all classes."""
    distill: float = 0.0
    """The weight, in [0, 1], of the unpruned model's soft labels; the other part is the labels'. 1: labels are not
    needed (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015)."""
    temperature: float = 4.0
    """Of the soft labels: what both models' outputs are divided by before the softmax."""
    class_dim: int = 1
    """The dim of the first output that holds the classes; -1 for token models with (batch, length, classes)."""
    features: float = 0.0
    """The weight of the difference to the unpruned model's layer outputs: mean squared where a layer has kept its
    channels, else that of the attention maps (FitNets, 2015; attention transfer, 2017)."""
    feature_layers: tuple[str, ...] = ()
    """The layers that `features` compares, as names or patterns; all convs and linear layers if empty."""
    regularizer: str = "none"
    """none; group-lasso (of prunable groups), slimming (batch-norm scales) or growing (of what `removal` removes)."""
    strength: float = 1e-4
    """The factor of the regulariser; for growing what it grows by."""
    grow_every: int = 10
    """For growing: after so many steps its factor grows."""
    soft: bool = False
    """Soft pruning: after each epoch the filters that `removal` would remove are zeroed, and trained on."""
    removal: str = ""
    """The options of the prune-channels that is to follow, such as `"macs=0.5"`: for growing and soft."""
    scales: str = "frozen"
    """Of quantizers, as `calibrate` set them. frozen: they stay. learned: they are trained along with the weights
    (learned step size, Esser et al., 2020); zero points stay. With sgd the scale itself is trained, as in the paper;
    with adamw its ratio to the calibrated one, which moves by about `lr` a step at most."""
    freeze_batch_norm: int = 0
    """Steps after which batch norms that are part of a quantized layer keep their statistics. Until then they
    normalise with those of each batch. Batch norms with a quantizer behind them that stand alone always keep theirs."""

    def __post_init__(self) -> None:
        for option, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("amp", AMP_TYPES),
            ("regularizer", {"none": None, **REGULARIZERS}),
            ("scales", {"frozen": None, "learned": None}),
        ):
            if (word := getattr(self, option)) not in known:
                hint = did_you_mean(word, known) or f"it has: {', '.join(known)}"
                raise UsageError(self.name, f"unknown {option} '{word}'", hint)
        if self.epochs is not None and self.steps is not None:
            raise UsageError(self.name, "'epochs' and 'steps' are given", "leave one out")
        for option, (holds, expected) in _RANGES.items():
            value = getattr(self, option)
            if value is not None and not holds(value):
                raise UsageError(self.name, f"{option.replace('_', '-')} is {value:g}", f"expected {expected}")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.nesterov and not (self.optimizer == "sgd" and self.momentum):
            raise UsageError(self.name, "'nesterov' is given", "it is a form of sgd's momentum")
        if self.feature_layers and not self.features:
            raise UsageError(self.name, "'feature-layers' is given", "expected a weight in 'features'")
        if self.label_smoothing and self.distill == 1:
            raise UsageError(self.name, "'label-smoothing' and distill=1 are given", "labels are not used then")
        asks = self.soft or self.regularizer == "growing"
        if asks and not self.removal:
            who = "soft" if self.soft else "regularizer=growing"
            raise UsageError(self.name, f"'{who}' is given without 'removal'", 'expected such as removal="macs=0.5"')
        if self.removal:
            if not asks:
                raise UsageError(self.name, "'removal' is given", "it belongs to 'soft' and regularizer=growing")
            parse_removal(self.removal)

    def needed(self) -> frozenset[str]:
        return self.needs | (frozenset({"evaluate"}) if self.early_stop else frozenset())

    def is_repeatable(self) -> bool:
        """Devices, processes and what the loader draws take part, and checkpoints are written."""
        return False

    def run(self, graph: Graph, ctx: Context) -> Result:
        """Train the graph's weights. `changed` counts them.

        Raises UsageError for a model without trainable weights, data that is missing, empty or does not fit, a loss or
        gradient that is not finite (with step and batch), quantizers that are not calibrated, and a checkpoint that is
        damaged or of another run.
        """
        return self.train(graph, ctx)[0]

    def train(self, graph: Graph, ctx: Context, momentum: OptimizerState | None = None) -> Trained:
        """`run` that starts from, and returns, what the optimizer remembers of each weight."""
        if not ctx.fuel.take():
            return Result(0), momentum or {}
        graph.eval()
        training = Training(graph, ctx, self, momentum)
        remembered = training.run()
        return Result(len(training.parameters), training.notes(), training.details()), remembered


# Option -> (what its values must fulfil, the same in words).
_RANGES = {
    "epochs": (lambda v: v >= 1, "1 or more"),
    "steps": (lambda v: v >= 1, "1 or more"),
    "lr": (lambda v: 0 < v < float("inf"), "a number above 0"),
    "momentum": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "weight_decay": (lambda v: v >= 0, "0 or more"),
    "warmup": (lambda v: v >= 0, "0 or more"),
    "clip": (lambda v: v >= 0, "0 (any) or more"),
    "accumulate": (lambda v: v >= 1, "1 or more"),
    "seed": (lambda v: v >= 0, "0 or more"),
    "checkpoint_every": (lambda v: v >= 0, "0 (each epoch) or more"),
    "early_stop": (lambda v: v >= 0, "0 (never) or more"),
    "label_smoothing": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "distill": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "temperature": (lambda v: 0 < v < float("inf"), "a number above 0"),
    "features": (lambda v: v >= 0, "0 or more"),
    "strength": (lambda v: v > 0, "a number above 0"),
    "grow_every": (lambda v: v >= 1, "1 or more"),
    "freeze_batch_norm": (lambda v: v >= 0, "0 (from the start) or more"),
}
