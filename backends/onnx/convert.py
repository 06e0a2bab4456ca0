"""Graph -> ONNX by torch.onnx, without the traces that it leaves of the machine and of its own work."""

import importlib.metadata
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch

from ...ir.errors import BuildError, first_line
from ...ir.graph import Graph
from ...ir.ops import describe, op_name
from .operators import TRANSLATIONS

_TARGET = re.compile(r"target=torch\.ops\.([\w.]+)")


def convert(graph: Graph, opset: int) -> onnx.ModelProto:
    """The graph in ONNX ops, and those of operators.py. Raises BuildError naming the op that ONNX lacks."""
    program = graph.exported_program()
    try:
        with _quiet():
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=opset, verbose=False, custom_translation_table=TRANSLATIONS
            )
    except Exception as error:
        raise _conversion_error(graph, error) from error
    assert exported is not None
    return exported.model_proto


def finish(model: onnx.ModelProto, graph: Graph, recipe: str) -> onnx.ModelProto:
    """Our names for symbolic extents, our metadata; no source paths of the machine that exported."""
    own = onnx.ModelProto()
    own.CopyFrom(model)
    own.producer_name, own.producer_version = "planish", importlib.metadata.version("planish")
    own.doc_string = ""
    for holder in (own, own.graph, *own.graph.node, *own.graph.initializer, *own.graph.input, *own.graph.output):
        del holder.metadata_props[:]
        holder.doc_string = ""
    del own.graph.value_info[:]
    if recipe:
        own.metadata_props.add(key="planish.recipe", value=recipe)
    for values, specs in ((own.graph.input, graph.inputs), (own.graph.output, graph.outputs)):
        if len(values) != len(specs):
            raise BuildError("onnx", f"torch.onnx made {len(values)} inputs or outputs of {len(specs)}")
        for value, spec in zip(values, specs, strict=True):
            for dim, extent in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
                if isinstance(extent, str):
                    dim.dim_param = extent
    return own


def _conversion_error(graph: Graph, error: BaseException) -> BuildError:
    """Name our node where torch.onnx names its op; decomposition may have made an op that the graph does not have."""
    text, cause = "", error
    while cause is not None:
        text, cause = f"{text}\n{cause}", cause.__cause__
    found = _TARGET.search(text)
    if found is None:
        return BuildError("onnx", f"torch.onnx failed: {first_line(error)}")
    bare = found[1].split(".")[-2]
    same = [n for n in graph.nodes if n.op == "call_function" and op_name(n).endswith(bare)]
    return BuildError("onnx", f"{describe(same[0]) if same else repr(found[1])} has no ONNX form in torch.onnx")


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx warns of optional packages and of its own deprecations, none of which a user can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
