"""Linear layers and products of matrices."""

from collections import defaultdict
from collections.abc import Sequence

from torch import fx

from ..constraints import Constraints
from ..relation import Dims, NoRule
from .table import Call, rule


@rule("linear")
def linear(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """`weight[out, in]`; a vector weight `[in]` gives one number."""
    x, weight = index[call.input], index[call.weight]
    index.tie(x[-1], weight[-1])
    index.contract(node, call.input, -1)
    result = [*x[:-1], *weight[:-1]]
    if call.bias is not None:
        index.align(result, index[call.bias])
    index.multiply(node, [*result, weight[-1]])
    if len(weight) == 2:
        index.produce(call.weight, weight[0])
    return result


@rule("matmul", "bmm", "mm", "mv", "addmm", "baddbmm")
def matrix_product(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """The last two node arguments are the factors, one before them is added."""
    left, right = [source for source in node.args if index.is_tensor(source)][-2:]
    rows, columns = len(index[left]), len(index[right])
    batch = "ABCDEFGH"[: max(rows, columns, 2) - 2]
    result = product(
        index,
        node,
        (left, right),
        (_letters(batch, rows, "mk"), _letters(batch, columns, "kn")),
        batch + "m" * (rows > 1) + "n" * (columns > 1),
    )
    if node.target.overloadpacket.__name__ in ("addmm", "baddbmm"):  # type: ignore[union-attr]
        index.align(result, index[call.self])
    if columns == 2:
        index.produce(right, index[right][1])
    return result


@rule("einsum")
def einsum(index: Constraints, node: fx.Node, call: Call) -> Dims:
    terms, arrow, result = call.equation.replace(" ", "").partition("->")
    specs = [_spelled(term, len(index[x])) for term, x in zip(terms.split(","), call.tensors, strict=True)]
    if any(len(set(spec)) < len(spec) for spec in specs):
        raise NoRule("it takes a diagonal")
    if not arrow:  # letters that occur once, in alphabetical order, behind the broadcast ones
        letters = "".join(specs)
        result = "".join(sorted((c for c in set(letters) if letters.count(c) == 1), key=lambda c: (c.isalpha(), c)))
    hidden = max((sum(not c.isalpha() for c in spec) for spec in specs), default=0)
    return product(index, node, call.tensors, specs, result.replace("...", HIDDEN[len(HIDDEN) - hidden :]))


HIDDEN = "12345678"  # the dims behind `...`, as they are aligned: from the last one


def _spelled(term: str, rank: int) -> str:
    """A term with one letter for every dim."""
    hidden = rank - len(term.replace("...", ""))
    return term.replace("...", HIDDEN[len(HIDDEN) - hidden :] if hidden else "")


@rule("bilinear")
def bilinear(index: Constraints, node: fx.Node, call: Call) -> Dims:
    """`weight[out, in1, in2]`."""
    one, other, weight = index[call.input1], index[call.input2], index[call.weight]
    index.align(one[:-1], other[:-1])
    for x, read, source in ((one, weight[1], call.input1), (other, weight[2], call.input2)):
        index.tie(x[-1], read)
        index.contract(node, source, -1)
    if call.bias is not None:
        index.tie(weight[0], index[call.bias][0])
    index.produce(call.weight, weight[0])
    return [*one[:-1], weight[0]]


def _letters(batch: str, rank: int, matrix: str) -> str:
    """The letters of one operand: its batch dims are the last ones of `batch`; a vector has the common letter only."""
    return batch[len(batch) - (rank - 2) :] + matrix if rank > 1 else "k"


def product(index: Constraints, node: fx.Node, operands: Sequence[fx.Node], specs: Sequence[str], result: str) -> Dims:
    """A sum of products in einsum letters: `mk,kn->mn`.

    A letter of several operands is contracted if the result lacks it; if not, it is a batch dim, that is, heads.
    """
    places = defaultdict(list)
    for operand, spec in zip(operands, specs, strict=True):
        for position, letter in enumerate(spec):
            places[letter].append((operand, position))
    dims = {}
    for letter, uses in places.items():
        found = [index[operand][position] for operand, position in uses]
        full = [dim for dim in found if len(dim) == max(map(len, found))]
        dims[letter] = full[0]
        for dim in full[1:]:
            index.tie(full[0], dim)
        if letter not in result and len(full) == 1:
            index.freeze(full, "they are summed over")
        elif letter not in result:
            index.contract(node, *uses[0])
        elif len(uses) > 1:
            index.heads(full)
    index.multiply(node, [dims[letter] for letter in dict.fromkeys(result + "".join(specs))])
    return [dims[letter] for letter in result]
