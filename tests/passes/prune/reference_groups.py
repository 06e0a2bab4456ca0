"""What may be removed according to the reference: the smallest sets that can go, and what is wrong with others.

A removed set is legal if what is left of every tensor is a box, nothing that must stay is gone, and no dim is empty.
"""

from collections import defaultdict
from collections.abc import Iterator

from reference import Plane, Reference

Site = tuple[str, str, int]  # a tensor, another one, and the dim of the other that belongs to dims of the first


class Choice(Exception):
    """Two dims could be thinned and not both: there is no one right answer."""


def prunable(reference: Reference, prefer: int | None = None) -> set[frozenset[Plane]]:
    """The smallest sets of planes that can go, as the planes of parameters that are in them.

    prefer  which dim to thin where only one of several can be: 0 the first, -1 the last. None: raises Choice.
    """
    never = set(reference.never)
    while True:
        rivals = _rivals(reference, never)
        owner = _tied(reference, never, {site for site, dims in rivals.items() if len(dims) > 1})
        frozen = _frozen(reference, never, owner)
        if frozen != never:
            never = frozen
            continue
        contested = [(site, sorted(dims)) for site, dims in rivals.items() if len(dims) > 1]
        if not contested:
            break
        if prefer is None:
            raise Choice(contested[0])
        (view, *_), dims = contested[0]
        never |= {p for p in reference.planes(view) if p[1] in dims and p[1] != dims[prefer]}
    found = defaultdict(set)
    for name in reference.graph.parameters:
        for plane in reference.planes(name):
            if plane not in never:
                found[owner[plane]].add(plane)
    return {frozenset(group) for group in found.values()}


def _sites(reference: Reference) -> Iterator[tuple[Site, Plane, tuple[Plane, ...]]]:
    for plane, others in reference.belongs:
        yield (plane[0], others[0][0], others[0][1]), plane, others


def _rivals(reference: Reference, never: set[Plane]) -> dict[Site, set[int]]:
    """At each site the dims that could be thinned: of several only one can, or the rest would be no box."""
    dims = defaultdict(set)
    for site, plane, _ in _sites(reference):
        if plane not in never:
            dims[site].add(plane[1])
    return dims


def _tied(reference: Reference, never: set[Plane], undecided: set[Site]) -> dict[Plane, Plane]:
    """Plane -> the one that stands for all that it is tied to."""
    owner = {p: p for tensor in reference.shapes for p in reference.planes(tensor)}

    def find(plane: Plane) -> Plane:
        while owner[plane] != plane:
            plane = owner[plane]
        return plane

    for site, plane, others in _sites(reference):
        if site not in undecided and (plane not in never or len(others) == 1):
            for other in others:
                owner[find(other)] = find(plane)
    return {plane: find(plane) for plane in owner}


def _frozen(reference: Reference, never: set[Plane], owner: dict[Plane, Plane]) -> set[Plane]:
    """What cannot go either: all that is tied to what cannot, or would empty a dim, or could go only with it."""
    bad = {owner[plane] for plane in never}
    for tensor, extents in reference.shapes.items():
        for dim, extent in enumerate(extents):
            owners = {owner[tensor, dim, i] for i in range(extent)}
            bad |= owners if len(owners) == 1 else set()
    with_whom = defaultdict(set)
    for site, plane, others in _sites(reference):
        for other in others:
            with_whom[site, other].add(plane)
    alone = {other for (_, other), planes in with_whom.items() if planes <= never}
    return {plane for plane in owner if owner[plane] in bad} | alone


def violations(reference: Reference, gone: set[Plane], tensors: set[str]) -> list[str]:
    """Why these planes cannot go together; empty if they can. Groups of a conv must lose equally many channels each,
    or go as a whole in its input and its output, whichever channels those are.

    tensors  those of which `gone` says what is left; the others are not looked at
    """
    found = [f"{plane} stays" for plane in gone & reference.never]
    for tensor, extents in reference.shapes.items():
        for dim, extent in enumerate(extents):
            if extent and all((tensor, dim, i) in gone for i in range(extent)):
                found.append(f"dim {dim} of {tensor} would be empty")
    with_whom = defaultdict(set)
    for site, plane, others in _sites(reference):
        if tensors.issuperset(site[:2]):
            if plane in gone and not gone.issuperset(others):
                found.append(f"{plane} goes without {set(others) - gone}")
            for other in others:
                with_whom[site, other].add(plane)
    found += [
        f"{p} goes without any of {planes}" for (_, p), planes in with_whom.items() if p in gone and not planes & gone
    ]
    for x, out, dim, groups in reference.grouped:
        found += _uneven(reference, gone, (x, out), dim, groups)
    return found


def _uneven(reference: Reference, gone: set[Plane], tensors: tuple[str, str], dim: int, groups: int) -> list[str]:
    """What is wrong with the groups of one call: how many planes each of them keeps, on both sides of it."""
    kept = []
    for tensor in tensors:
        each = reference.shapes[tensor][dim] // groups
        kept.append([sum((tensor, dim, g * each + i) not in gone for i in range(each)) for g in range(groups)])
    alive = [[count > 0 for count in counts] for counts in kept]
    if alive[0] != alive[1]:
        return [f"other groups of {tensors[0]} than of {tensors[1]} go"]
    uneven = [t for t, counts in zip(tensors, kept, strict=True) if len({count for count in counts if count}) > 1]
    return [f"the groups of {tensor} lose differently many" for tensor in uneven]
