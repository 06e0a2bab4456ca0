"""A folder in which other engines run on an emulated ARM core: an aarch64 Python, and the engines from their wheels.

    python benchmarks/arm_cost/prepare_peers.py FOLDER

The Python is Debian's, downloaded with apt under a configuration of its own and unpacked with dpkg: nothing is
installed on this machine, and root is not needed. Takes about 300 MB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

MIRROR, SUITE = "http://deb.debian.org/debian", "bookworm"
PYTHON = "3.11"
PACKAGES = (
    "libc6", "libgcc-s1", "libstdc++6", "libgomp1", "zlib1g", "libbz2-1.0", "liblzma5", "libffi8", "libexpat1",
    "libssl3", "libuuid1", "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal", "python3.11",
)  # fmt: skip
ENGINES = ("onnxruntime==1.31.1", "ncnn==1.0.20261020", "numpy<2.4")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_24_aarch64", "manylinux2014_aarch64")


def download_python(folder: Path) -> None:
    """Unpack Debian's arm64 Python below FOLDER/root."""
    state, root = folder / "apt", folder / "root"
    for path in (state / "lists/partial", state / "archives/partial", root):
        path.mkdir(parents=True, exist_ok=True)
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (state / "sources.list").write_text(f"deb [arch=arm64 signed-by={keys}] {MIRROR} {SUITE} main\n")
    (state / "status").write_text("")
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "-",
    }
    apt = ["apt-get", "-qq", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *PACKAGES], cwd=state / "archives", check=True)
    for package in sorted((state / "archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)


def download_engines(folder: Path) -> None:
    """Install the engines' aarch64 wheels into FOLDER/engines."""
    wanted = [word for platform in PLATFORMS for word in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--only-binary", ":all:"]
    python = [
        "--python-version",
        PYTHON,
        "--implementation",
        "cp",
        "--abi",
        "cp311",
        "--target",
        str(folder / "engines"),
    ]
    subprocess.run([*pip, *python, *wanted, "--no-deps", *ENGINES], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.absolute()
    download_python(folder)
    download_engines(folder)


if __name__ == "__main__":
    main()
