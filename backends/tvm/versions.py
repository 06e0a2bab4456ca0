"""TVM 0.27 works with one release of its FFI package only; a wrong one crashes later, far from the cause."""

import importlib.metadata

from ...ir.errors import UsageError

WANTED = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}


def check_versions() -> None:
    """Raises UsageError saying what is installed and what to install instead."""
    for package, wanted in WANTED.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found != wanted:
            install = " ".join(f"'{name}=={version}'" for name, version in WANTED.items())
            raise UsageError(
                "the TVM backend",
                f"{package} {found} is installed",
                f"expected {wanted} (others crash inside TVM)",
                f"run: pip install {install}",
            )
