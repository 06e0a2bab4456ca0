"""Attention layers alone: the kernel, its parts as separate kernels, TVM's own loops and PyTorch, in one run.

    python benchmarks/attention.py [--threads 1] [--rounds 30]

written out: the same as product, softmax, product. GMAC/s are of both products, at the least time.
"""

import argparse
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from timing import interleaved
from torch.nn import functional as F
from tvm import relax

import planish
from planish.backends.target import Target
from planish.backends.tvm.build import compile_model
from planish.backends.tvm.relax import RelaxModel
from planish.backends.tvm.threads import set_threads

# heads, tokens, width of a head
LAYERS = {
    "BERT-mini, 128 tokens": (4, 128, 64),
    "ViT-tiny": (3, 197, 64),
    "ViT-B/32": (12, 50, 64),
    "BERT-base, 384 tokens": (12, 384, 64),
}


class Fused(torch.nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class WrittenOut(torch.nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1) @ v


def tvm_loops(*operands: torch.Tensor) -> Callable[[], object]:
    """What TVM makes of its own attention op, which reads [batch, tokens, heads, width]."""
    builder = relax.BlockBuilder()
    swapped = [x.transpose(1, 2).contiguous() for x in operands]
    inputs = [relax.Var(name, relax.TensorType(x.shape, "float32")) for name, x in zip("qkv", swapped, strict=True)]
    with builder.function("main", params=inputs):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(relax.op.nn.attention(*inputs)))
        builder.emit_func_output(result)
    compiled = compile_model(RelaxModel(builder.get(), ()), Target.get("local"))
    return lambda: compiled(*swapped)


def candidates(heads: int, tokens: int, width: int) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    operands = tuple(torch.randn(1, heads, tokens, width, generator=generator) for _ in range(3))
    fused, written = (planish.compile(model.eval(), operands) for model in (Fused(), WrittenOut()))
    wanted = F.scaled_dot_product_attention(*(x.double() for x in operands))
    for compiled in (fused, written):
        torch.testing.assert_close(compiled(*operands).double(), wanted, rtol=1e-4, atol=1e-5)
    return {
        "kernel": lambda: fused(*operands),
        "written out": lambda: written(*operands),
        "TVM": tvm_loops(*operands),
        "PyTorch": lambda: F.scaled_dot_product_attention(*operands),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.set_grad_enabled(False)
    set_threads(chosen.threads)
    shown = Table(
        "", "kernel ms", "GMAC/s", "written out ms", "TVM ms", "PyTorch ms", "kernel / TVM", "kernel / PyTorch"
    )
    for name, (heads, tokens, width) in LAYERS.items():
        least = {key: t.least for key, t in interleaved(candidates(heads, tokens, width), chosen.rounds).items()}
        rate = 2 * heads * tokens * tokens * width / least["kernel"] / 1e6
        times = [f"{least[key]:.3f}" for key in ("written out", "TVM", "PyTorch")]
        ratios = [f"{least['kernel'] / least[key]:.3f}" for key in ("TVM", "PyTorch")]
        shown.add_row(name, f"{least['kernel']:.3f}", f"{rate:.0f}", *times, *ratios)
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
