"""The house: imports point one way, and inside the package they are relative."""

import ast
import tomllib
from pathlib import Path

import planish

ROOT = Path(str(planish.__file__)).parent
LAYERS = {"ir": 0, "passes": 1, "backends": 2}  # the root is above them all
FILES = sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] in LAYERS or path.parent == ROOT)


def layer(path):
    return LAYERS.get(path.relative_to(ROOT).parts[0], len(LAYERS))


def imported_files(path):
    """The package's own files and folders that a file imports, with the line of each import."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for name in node.names:
                target = folder / name.name
                yield node.lineno, target if target.is_dir() or target.with_suffix(".py").exists() else folder


def test_the_walk_sees_the_package():
    names = {str(path.relative_to(ROOT)) for path in FILES}
    assert {"__init__.py", "ir/graph.py", "passes/base.py", "backends/target.py"} <= names
    assert not {name for name in names if name.startswith(("tests", "docs", "benchmarks", "build"))}
    assert (ROOT / "ir" / "errors") in {target for _, target in imported_files(ROOT / "passes" / "pipeline.py")}


def test_imports_point_one_way():
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {target.relative_to(ROOT)}"
        for path in FILES
        for line, target in imported_files(path)
        if layer(target) > layer(path)
    ]
    assert not upward


def test_the_package_imports_itself_relatively():
    absolute = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            absolute += [(path.name, module) for module in modules if module.split(".")[0] == "planish"]
    assert not absolute


def test_every_package_folder_is_in_the_wheel():
    """A folder that pyproject.toml forgets would be missing after `pip install`."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"])
    folders = {".".join(("planish", *path.parent.relative_to(ROOT).parts)) for path in FILES}
    assert listed == folders
