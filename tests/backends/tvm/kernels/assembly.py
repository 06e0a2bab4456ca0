"""Just enough reading of assembly to look into innermost loops."""

import re

LABEL = re.compile(r"^(\.L\w+):")
JUMP = re.compile(r"^\s+(?:j\w+|b(?:\.?\w\w)?|cbnz|cbz|tbnz|tbz)\s+(?:.*,\s*)?(\.L\w+)\s*$")


def innermost_loops(text: str) -> list[list[str]]:
    """The instructions of each loop (from a label to a jump back to it) that has no other loop inside."""
    lines = [line for line in text.splitlines() if not re.match(r"^\s*\.(?!L)|^\.Ltmp|^\s*[#/@]", line)]
    labels = {match[1]: i for i, line in enumerate(lines) if (match := LABEL.match(line))}
    loops = []
    for end, line in enumerate(lines):
        jump = JUMP.match(line)
        if jump and labels.get(jump[1], end + 1) <= end:
            loops.append((labels[jump[1]], end))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [lines[start : end + 1] for start, end in inner]


def multiply_adds(loop: list[str]) -> int:
    """x86 and ARM vector multiply-adds."""
    return sum(bool(re.search(r"\bvfmadd\w+ps\b|\bfmla\b|\bvfma\.f32\s+q", line)) for line in loop)


def vector_stores(loop: list[str]) -> int:
    """x86 vector stores (AT&T order: the memory operand is last) and ARM stores of vector registers."""
    return sum(
        bool(re.search(r"\bvmov[au]ps\s+%[xyz]mm\d+, .*\)|\bst[pru]+\s+[qd]\d+|\bvst\w+(?:\.\d+)?\s", line))
        for line in loop
    )
