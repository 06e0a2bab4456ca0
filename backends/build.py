"""From a graph to code for a target: one builder per kind of code."""

from collections.abc import Callable

from ..ir.errors import UsageError
from ..ir.graph import Graph
from ..ir.verify import SCALE_ARGUMENT
from .artifact import Artifact, Edges
from .cache import Cache
from .cache_key import Place
from .target import Target


def build(graph: Graph, target: Target, recipe: str, cache: Cache | None = None) -> Artifact:
    """Compile a graph for a target. `recipe` is the pipeline's text, stored in bundles.

    cache  where code for CPUs is looked for and kept

    Raises BuildError naming the ops (and source lines) that the target cannot take, UsageError for quantizers
    without scales, and for layers in float16 on a board that does not compute in it.
    """
    is_calibrated = "fake-quant" not in graph.properties or "calibrated" in graph.properties
    if not is_calibrated and graph.calls(*SCALE_ARGUMENT):
        raise UsageError(target.name, "the model has quantizers without scales", "add 'calibrate' to the recipe")
    if "half" in graph.properties and not target.has_half and target.name != "local":
        able = [name for name in Target.names() if name != "local" and Target.get(name).has_half]
        what = "the model has layers in float16, which this machine does not compute in"
        raise UsageError(target.name, what, f"targets that do: {', '.join(able)}", "leave 'to-half' out")
    return _BUILDERS[target.kind, target.code](graph, target, recipe, cache)


def find(key: str, edges: Edges, target: Target, recipe: str, cache: Cache) -> Artifact | None:
    """What `build` made and kept under a key (`Artifact.key`), of a graph with these edges; None where it is gone."""
    place = Place(cache, key)
    if target.code == "c":
        from .board import find_board

        return find_board(place, target, recipe)
    from .host import find_host

    return find_host(place, edges, target, recipe)


# The builders are imported when they are needed, so that a graph can be worked on without loading TVM.
def _host_module(graph: Graph, target: Target, recipe: str, cache: Cache | None) -> Artifact:
    from .hybrid import build_local

    return build_local(graph, target, recipe, cache)


def _c_program(graph: Graph, target: Target, recipe: str, cache: Cache | None) -> Artifact:
    from .board import build_board

    return build_board(graph, target, recipe, cache)


def _cuda_module(graph: Graph, target: Target, recipe: str, cache: Cache | None) -> Artifact:
    from .gpu import build_gpu

    return build_gpu(graph, target, recipe)


_BUILDERS: dict[tuple[str, str], Callable[[Graph, Target, str, Cache | None], Artifact]] = {
    ("cpu", "tvm"): _host_module,
    ("cpu", "c"): _c_program,
    ("cuda", "tvm"): _cuda_module,
}
