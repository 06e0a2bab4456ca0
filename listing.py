"""What `planish passes` and `planish targets` show."""

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
import typing
from typing import Any

from rich.text import Text

from .backends.target import Target
from .ir.errors import UsageError
from .tables import name, number, prose, spaced, table
from .terminal import View

PROPERTIES = ("requires", "refuses", "provides", "drops", "needs")
REQUIRED = "required"


def passes_view() -> View:
    """Every pass with its summary, options and properties."""
    documents = [pass_document(cls) for _, cls in sorted(known_passes().items())]
    rows = [(d["name"], d["summary"], _options_text(d["options"]), _properties_text(d)) for d in documents]
    columns = (name("pass"), prose("does"), prose("options"), prose("before and after"))
    return View(documents, table("", columns, rows))


def pass_view(wanted: str) -> View:
    """One pass: its whole documentation and its options.

    Raises UsageError for an unknown one, with the nearest name.
    """
    from .passes.pipeline_text import lookup

    document = pass_document(lookup(wanted))
    options = [(o["name"], o["type"], o["default"], o["about"]) for o in document["options"]]
    properties = [(key, ", ".join(document[key])) for key in PROPERTIES if document[key]]
    shown = spaced(
        Text(document["name"], style="bold"),
        Text(document["documentation"]),
        table("", (name("option"), name("type"), name("default"), prose("meaning")), options) if options else None,
        table("", (name(), prose()), properties) if properties else None,
    )
    return View(document, shown)


def known_passes() -> dict[str, Any]:
    """The classes of all passes by name, plug-ins included."""
    from .passes.base import REGISTRY
    from .passes.pipeline_text import load_all

    load_all()
    return REGISTRY


def pass_document(cls: Any) -> dict[str, Any]:
    documentation = inspect.getdoc(cls) or ""
    return {
        "name": cls.name,
        "summary": documentation.partition("\n")[0],
        "documentation": documentation,
        "options": option_documents(cls),
        **{key: sorted(getattr(cls, key)) for key in PROPERTIES},
    }


def option_documents(cls: Any) -> list[dict[str, str]]:
    """Name, type, default and meaning of each option, as pipelines write them."""
    hints, about = typing.get_type_hints(cls), field_comments(cls)
    return [
        {
            "name": field.name.replace("_", "-"),
            "type": inspect.formatannotation(hints[field.name]).replace("None", "none"),
            "default": default_text(field),
            "about": about.get(field.name, ""),
        }
        for field in dataclasses.fields(cls)
    ]


def default_text(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return REQUIRED
    if value is None or isinstance(value, str):
        return value or "none"
    return json.dumps(value, default=str)


def field_comments(cls: type) -> dict[str, str]:
    """The strings that stand below a class's fields; none where its source is not at hand."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, SyntaxError, TypeError, ValueError):
        return {}
    comments = {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for pair in itertools.pairwise(body):
        match pair:
            case (ast.AnnAssign(target=ast.Name(field)), ast.Expr(value=ast.Constant(str(comment)))):
                comments[field] = " ".join(comment.split())
    return comments


def _options_text(options: list[dict[str, str]]) -> str:
    return ", ".join(o["name"] if o["default"] == REQUIRED else f"{o['name']}={o['default']}" for o in options)


def _properties_text(document: dict[str, Any]) -> str:
    return "; ".join(f"{key} {', '.join(document[key])}" for key in PROPERTIES if document[key])


# ---------------------------------------------------------------- targets


def targets_view() -> View:
    """Every target: what it is, and what this machine can do with its code."""
    known = {wanted: target for wanted in Target.names() if (target := _target(wanted)) is not None}
    columns = (name("target"), prose("machine"), name("core"), number("lanes"), name("code"), name("runs here"))
    rows = [
        (t.name, t.about, t.cuda_arch or t.cpu, "" if t.cuda_arch else t.lanes, t.code, runs_here(t))
        for t in known.values()
    ]
    documents = [{**dataclasses.asdict(t), "machine": t.machine, "runs_here": runs_here(t)} for t in known.values()]
    return View(documents, table("", columns, rows))


def runs_here(target: Target) -> str:
    """How this machine runs the target's code: yes, emulated, or no."""
    if target.runs_here():
        return "yes"
    return "emulated" if target.emulator_cpu else "no"


def _target(wanted: str) -> Target | None:
    """None for `local` on a processor that no code is made for."""
    try:
        return Target.get(wanted)
    except UsageError:
        return None
