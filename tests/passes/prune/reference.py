"""A slow, obviously right model of which channels belong together. PyTorch itself is the oracle.

A *plane* is one index of one dim of one tensor, such as channel 3 of a conv's output or row 3 of its weight. To find
out what belongs to a plane of an operand, the op is run twice, the second time with other numbers on that plane: the
elements of the result that change are the plane's *image*. If the image is made of whole planes of the result, the one
cannot go without the others. A dim that is summed over shows no image; there two operands are silenced except for one
plane each, and the planes that still give a product belong together.

Nothing here knows a rule of an op (the exceptions are in `_told` and `FREE`), no index is computed from another,
and all loops are over single elements.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import product

import torch
from torch import fx

from planish.ir.graph import Graph
from planish.ir.ops import arguments, is_getitem, op_name, tensors
from planish.ir.shapes import size

Plane = tuple[str, int, int]  # the tensor, the dim, the index
Element = tuple[str, int]  # the tensor, the flat position

MULTILINEAR = (
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "linear",
    "matmul",
    "bmm",
    "einsum",
)
FREE = ("expand", "expand_as")  # their new dims have as many indices as anybody wants


class Reference:
    """What PyTorch says about a captured graph.

    shapes     tensor -> its extents; a weight has its name, a value the name of its node (`split:1` for its second)
    belongs    (plane, planes): when the first goes, all of the others go; and one of the others goes only with a first
    never      planes that cannot go
    grouped    (an input, a result, their dim, the number of its groups) of every call with groups
    """

    def __init__(self, graph: Graph):
        self.graph, self.generator = graph, torch.Generator().manual_seed(0)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.belongs: list[tuple[Plane, tuple[Plane, ...]]] = []
        self.never: set[Plane] = set()
        self.grouped: list[tuple[str, str, int, int]] = []
        self.names: dict[int, str] = {}
        for node in graph.nodes:
            self._visit(node)

    def planes(self, tensor: str) -> Iterator[Plane]:
        for dim, extent in enumerate(self.shapes[tensor]):
            for index in range(extent):
                yield tensor, dim, index

    def tensors_of(self, node: fx.Node) -> list[str]:
        """The names of a node's tensors; tied weights have one name, and so have the parts of a tuple."""
        if node.op == "get_attr":
            return [self.names.setdefault(id(self.graph.weight(node)), str(node.target))]
        if is_getitem(node):
            return [self.tensors_of(node.args[0])[node.args[1]]]  # type: ignore[arg-type, index]
        count = len(tensors(node.meta.get("val")))
        return [node.name] if count == 1 else [f"{node.name}:{i}" for i in range(count)]

    def _visit(self, node: fx.Node) -> None:
        if is_getitem(node) or (node.op == "call_function" and not tensors(node.meta.get("val"))):
            return
        if node.op == "output":
            for source in node.all_input_nodes:
                self.never.update(p for tensor in self.tensors_of(source) for p in self.planes(tensor))
            return
        for name, value in zip(self.tensors_of(node), tensors(node.meta["val"]), strict=True):
            self.shapes[name] = tuple(size(extent) for extent in value.shape)
            self.never.update(p for p in self.planes(name) if self.shapes[name][p[1]] == 1)
            if node.op == "placeholder":
                self.never.update(self.planes(name))
        if node.op == "call_function":
            self._try(node)

    def _try(self, node: fx.Node) -> None:
        """Find out what belongs together around one call."""
        operands = {n: self._numbers(node, n) for n in node.all_input_nodes if self._is_float(n)}
        before = self._run(node, operands)
        images = {n: self._images(node, operands, n, before) for n in operands}
        told, known = len(self.belongs), self._told(node)
        for operand in images.keys() - set(known):
            for result in self.tensors_of(node):
                self._compare(images[operand], result)
        if op_name(node) in MULTILINEAR and not known:
            self._try_pairs(node, operands, images, sum(value.numel() for value in before))
        matched = {p for plane, others in self.belongs[told:] for p in (plane, *others)}
        self._stay(node, {n: image for n, image in images.items() if n not in known}, matched)
        touched = {element for image in images.values() for part in image.values() for element in part}
        new = [p for tensor in self.tensors_of(node) for p in self.planes(tensor)]
        if op_name(node) == "grid_sampler":
            (grid,) = self.tensors_of(arguments(node).grid)
            self.never.update(p for p in self.planes(grid) if p[1] == len(self.shapes[grid]) - 1)
        if op_name(node) not in FREE:
            self.never.update(p for p in new if p not in matched and not touched.isdisjoint(self._elements(p)))

    def _stay(self, node: fx.Node, images: dict[fx.Node, dict[Plane, set[Element]]], matched: set[Plane]) -> None:
        """Planes of operands that cannot go: they are only a part of a plane, such as a tap of a filter, or all that
        a result comes from. To be a part of everything is no reason to stay: that is an average over them."""
        for image in images.values():
            for result in self.tensors_of(node):
                parts = {plane: {e for e in part if e[0] == result} for plane, part in image.items()}
                reached = set().union(*parts.values())
                sources = Counter(plane[1] for plane, part in parts.items() if part)
                for plane, part in parts.items():
                    is_alone = part == reached and sources[plane[1]] == 1
                    is_mixed = part == reached and op_name(node) not in MULTILINEAR
                    if part and (is_alone or (plane not in matched and not is_mixed)):
                        self.never.add(plane)

    def _is_float(self, node: fx.Node) -> bool:
        return any(t.dtype.is_floating_point for t in tensors(node.meta.get("val")))

    def _numbers(self, node: fx.Node, operand: fx.Node) -> torch.Tensor:
        """Above 0 and below 1: no activation is off there, no sum cancels, a sampling grid stays on the image. The
        slope of a PReLU shows below 0."""
        (name,) = self.tensors_of(operand)
        numbers = torch.rand(self.shapes[name], generator=self.generator, dtype=torch.float64) * 0.8 + 0.1
        return -numbers if op_name(node) == "prelu" else numbers

    def _run(self, node: fx.Node, operands: dict[fx.Node, torch.Tensor]) -> list[torch.Tensor]:
        def value(n: fx.Node):
            if n in operands:
                return operands[n]
            return self.graph.weight(n) if n.op == "get_attr" else size(n.meta["val"])

        return tensors(node.target(*fx.map_arg(node.args, value), **fx.map_arg(node.kwargs, value)))  # type: ignore

    def _images(self, node, operands, operand, before) -> dict[Plane, set[Element]]:
        """By plane of an operand, the elements of the results that change with it."""
        (name,) = self.tensors_of(operand)
        found = {}
        for plane in self.planes(name):
            changed = operands[operand].clone()
            part = changed.select(*plane[1:])
            part += 1.5 + torch.rand(part.shape, generator=self.generator, dtype=part.dtype)  # softmax sees no constant
            after = self._run(node, {**operands, operand: changed})
            found[plane] = {
                (result, position)
                for result, old, new in zip(self.tensors_of(node), before, after, strict=True)
                for position in torch.nonzero(((new - old).abs() > 1e-9).flatten()).flatten().tolist()
            }
        return found

    def _elements(self, plane: Plane) -> set[Element]:
        tensor, dim, index = plane
        shape = self.shapes[tensor]
        return {(tensor, i) for i, place in enumerate(product(*map(range, shape))) if place[dim] == index}

    def _compare(self, images: dict[Plane, set[Element]], result: str) -> None:
        """Note which planes of an operand are whole planes of a result, and the other way round."""
        images = {plane: {e for e in image if e[0] == result} for plane, image in images.items()}
        reached = set().union(*images.values())
        parts = {plane: self._elements(plane) & reached for plane in self.planes(result)}
        for one, other in ((images, parts), (parts, images)):
            for plane, image in one.items():
                if image and image != reached:
                    self.belongs += [(plane, covering) for covering in _covers(image, other)]

    def _try_pairs(self, node, operands, images, everything: int) -> None:
        """Planes that are summed over change all of the result. What they are multiplied with goes with them."""
        added = getattr(arguments(node), "bias", None)
        factors = [n for n in operands if n is not added]
        silent = {n: torch.zeros_like(value) for n, value in operands.items()}
        for one, other in (factors, factors[::-1]) if len(factors) == 2 else ():
            for dim in range(operands[one].ndim):
                planes = [p for p in images[one] if p[1] == dim and len(images[one][p]) == everything]
                if len(planes) == operands[one].shape[dim] > 1:
                    partners = [self._partners(node, operands, silent, p, one, other) for p in planes]
                    if all(len(found) == 1 for found in partners):
                        self.belongs += [(p, tuple(found)) for p, found in zip(planes, partners, strict=True)]

    def _partners(self, node, operands, silent, plane, one, other) -> list[Plane]:
        """The planes of the other factor without which nothing is left of this one, in the dim that has only one."""
        (name,) = self.tensors_of(other)
        by_dim = defaultdict(list)
        for candidate in self.planes(name):
            alone = {one: _only(operands[one], plane), other: _only(operands[other], candidate)}
            if any(bool((result != 0).any()) for result in self._run(node, {**silent, **alone})):
                by_dim[candidate[1]].append(candidate)
        return [found[0] for dim, found in by_dim.items() if len(found) == 1 and self.shapes[name][dim] > 1]

    def _told(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """What numbers cannot show. A norm changes all its results with each operand and still has a channel for a
        channel. Groups of channels are a view [groups, channels of a group], of which either dim may be thinned.

        Returns the operands that this says everything about.
        """
        if op_name(node) not in ("layer_norm", "rms_norm", "group_norm") and "conv" not in op_name(node):
            return ()
        call, (out,) = arguments(node), self.tensors_of(node)
        (x,) = self.tensors_of(call.input)
        if "norm" in op_name(node):
            self.belongs += [(p, ((out, *p[1:]),)) for p in self.planes(x)]
            if op_name(node) == "group_norm" and call.num_groups > 1:
                self._view(x, 1, f"{out}/in", call.num_groups)
                self.grouped.append((x, out, 1, call.num_groups))
            return (call.input,)
        return self._told_of_conv(call, x, out) if call.groups > 1 else ()

    def _told_of_conv(self, call, x: str, out: str) -> tuple[fx.Node, ...]:
        (weight,) = self.tensors_of(call.weight)
        extents = self.shapes[weight]
        channel = len(self.shapes[out]) - len(extents) + 1
        self._view(x, channel, f"{out}/in", call.groups)
        self._view(out, channel, f"{out}/out", call.groups)
        self.grouped.append((x, out, channel, call.groups))
        is_transposed = hasattr(call, "output_padding")
        rows, columns = (x, f"{out}/out") if is_transposed else (out, f"{out}/in")
        self.belongs += [((f"{out}/in", 0, g), ((f"{out}/out", 0, g),)) for g in range(call.groups)]
        self.belongs += [((weight, 0, i), ((rows, channel, i),)) for i in range(extents[0])]
        self.belongs += [((weight, 1, i), ((columns, 1, i),)) for i in range(extents[1])]
        self.never.update(p for p in self.planes(weight) if p[1] > 1)
        return call.input, call.weight

    def _view(self, tensor: str, dim: int, view: str, groups: int) -> None:
        """A tensor that stands for one dim of another, as groups and the channels of a group."""
        extent = self.shapes[tensor][dim]
        self.shapes[view] = (groups, extent // groups)
        self.never.update(p for p in self.planes(view) if self.shapes[view][p[1]] == 1)
        places = list(product(range(groups), range(extent // groups)))
        for plane in self.planes(view):
            covering = tuple((tensor, dim, i) for i, place in enumerate(places) if place[plane[1]] == plane[2])
            self.belongs.append((plane, covering))


def _only(value: torch.Tensor, plane: Plane) -> torch.Tensor:
    """Zeros but for one plane."""
    alone = torch.zeros_like(value)
    alone.select(*plane[1:]).copy_(value.select(*plane[1:]))
    return alone


def _covers(image: set[Element], parts: dict[Plane, set[Element]]) -> Iterator[tuple[Plane, ...]]:
    """The planes of one dim that together are the image."""
    inside = defaultdict(list)
    for plane, part in parts.items():
        if part and part <= image:
            inside[plane[:2]].append(plane)
    for planes in inside.values():
        if set().union(*(parts[p] for p in planes)) == image:
            yield tuple(planes)
