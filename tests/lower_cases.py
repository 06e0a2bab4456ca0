"""Small nets on their way to integers: calibrated, lowered, and compared with their float form step by step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn

from planish.ir.capture import capture
from planish.ir.graph import Graph
from planish.ir.ops import arguments, is_op
from planish.passes.base import Context, Result
from planish.passes.pipeline import Pipeline


class Net(nn.Module):
    """A model whose forward is the function given, with a few layers to call."""

    def __init__(self, function: Callable):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.other = nn.Conv2d(4, 4, 3, padding=1)
        self.conv1d = nn.Conv1d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


@dataclass
class Lowered:
    """A float model, the same fake-quantized and in integers, and what the pass said."""

    source: Graph
    fake: Graph
    integer: Graph
    result: Result
    data: torch.Tensor


def settled(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The model with weights of this seed, and batch norms as after training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().eval()
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.running_mean is not None:
                assert module.running_var is not None
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.3, 2.0)
                if module.weight is not None:
                    nn.init.uniform_(module.weight, -1.5, 1.5)
                    nn.init.normal_(module.bias, std=0.3)
        return model


def random_data(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lower(model: nn.Module | Graph, data: torch.Tensor, activations: str = "uint8", before: str = "") -> Lowered:
    """Calibrated on the data, then lowered."""
    passes = ", ".join(filter(None, [before, f"insert-fake-quant{{activations={activations}}}", "calibrate"]))
    graph = model if isinstance(model, Graph) else capture(model, (data[:2],))
    outcome = Pipeline.parse(passes).run(graph, Context(data=data))
    lowered = Pipeline.parse("lower-integers").run(outcome.graph)
    return Lowered(outcome.origin, outcome.graph, lowered.graph, lowered.steps[0].result, data)


def lower_net(function: Callable, *shape: int, **options) -> Lowered:
    """A `Net` of this forward, on random data of this shape (4 images of 4 channels and 8 x 8 pixels by default)."""
    return lower(settled(lambda: Net(function)), random_data(*(shape or (4, 4, 8, 8))), **options)


def ops(graph: Graph) -> list[str]:
    """The ops of a graph in order, without namespace."""
    return [str(n.target).split(".")[1] if "." in str(n.target) else "getitem" for n in _calls(graph)]


def _calls(graph: Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_function"]


@dataclass
class Difference:
    """How far one quantizer's integers are from what the fake quantizer gives for the same inputs, in its steps."""

    value: str
    most: int
    share: float


def differences(lowered: Lowered, *inputs: torch.Tensor) -> list[Difference]:
    """Each quantizer by itself: the fake-quantized graph runs on the integer graph's values.

    At every quantizer its own value is compared with the integers, which then stand for it: errors do not add up.
    """
    comparison = _Comparison(lowered.fake, values_of(lowered.integer, *inputs))
    comparison.run(*inputs)
    return comparison.found


def values_of(graph: Graph, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every value of a run, by the name of its node."""
    record = _Record(graph.module)
    record.run(*inputs)
    return record.seen


class _Record(fx.Interpreter):
    """Keeps every value."""

    def __init__(self, module):
        super().__init__(module)
        self.seen: dict[str, torch.Tensor] = {}

    def run_node(self, n):
        value = super().run_node(n)
        self.seen[n.name] = value
        return value


class _Comparison(fx.Interpreter):
    def __init__(self, fake: Graph, integers: dict[str, torch.Tensor]):
        super().__init__(fake.module)
        self.fake, self.integers = fake, integers
        self.found: list[Difference] = []

    def run_node(self, n):
        value = super().run_node(n)
        if not is_op(n, "fake_quantize_per_tensor_affine"):
            return value
        call = arguments(n)
        integers = self._integers(f"{call.self.name}_int", value.shape)
        if integers is None:  # it has its input's integers
            return value
        scale, zero = (self.fake.weight(node) for node in (call.scale, call.zero_point))
        real = (integers.to(torch.int32) - zero).float() * scale
        steps = torch.round((value - real) / scale).abs()
        self.found.append(Difference(call.self.name, int(steps.max()), float((steps > 0).float().mean())))
        return real

    def _integers(self, name: str, shape: torch.Size) -> torch.Tensor | None:
        """The last 8-bit integers whose name starts so."""
        found = [v for key, v in self.integers.items() if key.startswith(name) and isinstance(v, torch.Tensor)]
        return next((v for v in reversed(found) if v.dtype.itemsize == 1 and v.shape == shape), None)
