"""Proof of instructions: which multiply-accumulate a kernel's assembly really uses."""

import re
from collections import Counter

# Multiply-accumulates as people name them, most capable first. The second pattern is the operand that must be there.
_MULTIPLY_ACCUMULATES = (
    ("tdpbusd", r"tdpbusd"),
    ("vpdpbusd", r"vpdpbusd"),
    ("vpdpwssd", r"vpdpwssd"),
    ("vpmaddwd", r"vpmaddwd"),
    ("smmla", r"smmla"),
    ("sdot", r"\bsdot\b"),
    ("vmlal.s8", r"\bvm(?:ull|lal)\.s8\b"),
    ("vmlal.s16", r"\bvm(?:ull|lal)\.s16\b"),
    ("smlal", r"\bsm(?:ull|lal)2?\b"),
    ("vfmadd zmm", r"vfmadd\d+ps\b.*%?zmm"),
    ("vfmadd ymm", r"vfmadd\d+ps\b.*%?ymm"),
    ("vfmadd xmm", r"vfmadd\d+ps\b.*%?xmm"),
    ("fmla v.8h", r"\bfmla\b.*v\d+\.8h|\bfmla\.8h"),
    ("fmla v.4s", r"\bfmla\b.*v\d+\.4s|\bfmla\.4s"),
    ("vfma.f32 q", r"\bvfma\.f32\s+q"),
    ("fmla v.2s", r"\bfmla\b.*v\d+\.2s|\bfmla\.2s"),
    ("vfmadd scalar", r"vfmadd\d+ss\b"),
    ("fmadd scalar", r"\bfmadd\b"),
    ("mulps", r"\bv?mulps\b"),
    ("fmul v.4s", r"\bfmul\b.*v\d+\.4s|\bfmul\.4s"),
)
_LABEL = re.compile(r"^([A-Za-z_][\w.]*):")


def multiply_accumulate(assembly: str) -> str:
    """The most frequent multiply-accumulate of a kernel, `none` where it has none (a pool, a copy)."""
    counts = Counter({name: len(re.findall(pattern, assembly)) for name, pattern in _MULTIPLY_ACCUMULATES})
    name, count = counts.most_common(1)[0]
    return name if count else "none"


def by_symbol(assembly: str, symbols: list[str]) -> dict[str, str]:
    """Split one module's assembly into the text of each kernel, its parallel bodies included.

    Functions that code generation derives from a kernel start with the kernel's symbol.
    """
    longest_first = sorted(symbols, key=len, reverse=True)
    lines: dict[str, list[str]] = {symbol: [] for symbol in symbols}
    current: list[str] | None = None
    for line in assembly.splitlines():
        label = _LABEL.match(line)
        if label and not label[1].startswith(".L"):
            owner = next((s for s in longest_first if _derived(label[1], s)), None)
            current = lines[owner] if owner else None
        elif current is not None:
            current.append(line)
    return {symbol: "\n".join(text) for symbol, text in lines.items()}


def _derived(label: str, symbol: str) -> bool:
    name = label.removeprefix("__tvm_ffi_").removeprefix(".")
    return name == symbol or name.startswith(f"{symbol}_")
