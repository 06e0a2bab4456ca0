"""What `planish doctor` checks: versions against pins, processor, linkers, emulators, CUDA compilers."""

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata

from rich.text import Text

from .backends.target import cpu_features, local
from .ir.errors import PlanishError, first_line
from .tables import name, prose, table
from .terminal import View

OK, MISSING = "ok", "missing"
COLORS = {OK: "green", MISSING: "red", "optional": "yellow"}
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*(?P<sign>==|>=)\s*(?P<version>[\w.+-]+)\s*(;.*)?$")
# Instructions that make kernels faster where a processor has them: Linux's names, what they are for.
INSTRUCTIONS = {
    "x86_64": ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8"),
    "aarch64": ("asimd", "asimddp", "asimdhp", "i8mm", "sve"),
}


@dataclass(frozen=True)
class Check:
    """One line: what was looked for, whether it is there, what was found, and what to do where it is not."""

    area: str
    what: str
    found: bool
    detail: str
    cure: str = ""
    required: bool = True

    @property
    def status(self) -> str:
        return OK if self.found else MISSING if self.required else "optional"


def doctor_view() -> View:
    """All checks; the exit code is 1 where something required is missing."""
    checks = [check for group in CHECKS for check in group()]
    rows = [(c.area, c.what, Text(c.status, style=COLORS[c.status]), _advice(c)) for c in checks]
    healthy = all(check.found or not check.required for check in checks)
    document = {"healthy": healthy, "checks": [{**asdict(check), "status": check.status} for check in checks]}
    columns = (name("area"), name("what"), name("state"), prose("detail"))
    return View(document, table("", columns, rows), int(not healthy))


def _advice(check: Check) -> str:
    return check.detail if check.found else "; ".join(filter(None, [check.detail, check.cure]))


def packages() -> Iterator[Check]:
    """Python and every package that pyproject.toml asks for, against the version it asks for."""
    version = platform.python_version()
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Check("Python", version, fits, sys.executable, "expected Python 3.11 to 3.13")
    for requirement in metadata.requires("planish") or ():
        if "extra ==" not in requirement and (wanted := _REQUIREMENT.match(requirement)):
            yield _package(wanted["name"], wanted["sign"], wanted["version"])


def _package(package: str, sign: str, wanted: str) -> Check:
    cure = f"pip install '{package}{sign}{wanted}'"
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Check("packages", package, False, "it is not installed", cure)
    fits = found == wanted if sign == "==" else release(found) >= release(wanted)
    return Check("packages", package, fits, found if fits else f"it is {found}, expected {sign}{wanted}", cure)


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version starts with: (2, 13, 0) of "2.13.0+cpu"."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def processor() -> Iterator[Check]:
    """The level of code for this machine, and which faster instructions it has."""
    try:
        row = local()
        yield Check("processor", platform.machine(), True, row.about)
    except PlanishError as error:
        yield Check("processor", platform.machine(), False, str(error))
    known = INSTRUCTIONS.get(platform.machine(), ())
    have = [feature for feature in known if feature in cpu_features()]
    yield Check("processor", "instructions", bool(have), ", ".join(have) or "none that kernels use", required=False)


def tvm_loads() -> Iterator[Check]:
    """Whether TVM and its libraries can be loaded, in a process of its own: broken ones may crash."""
    command = [sys.executable, "-c", "import planish.backends.tvm, tvm; print(tvm.__version__)"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    printed = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    detail = printed[-1] if printed else f"exit code {done.returncode}"
    yield Check("TVM", "loads", done.returncode == 0, detail, "install the versions above again")


def linkers() -> Iterator[Check]:
    """What links for this machine (required) and for others."""
    try:
        from .backends.linker import find_linker
    except Exception as error:  # whatever a broken TVM raises
        yield Check("linkers", "any", False, f"not looked for: {first_line(error)}", "repair TVM first")
        return
    for machine in dict.fromkeys((platform.machine(), "aarch64", "arm", "x86_64")):
        system = "gnueabihf" if machine == "arm" else "gnu"
        try:
            found, detail = True, find_linker(f"{machine}-linux-{system}").name
        except PlanishError as error:
            found, detail = False, str(error)
        yield Check("linkers", f"for {machine}", found, detail, required=machine == platform.machine())


def emulators() -> Iterator[Check]:
    """What runs the code of boards here."""
    for machine in ("aarch64", "arm"):
        qemu = shutil.which(f"qemu-{machine}") or shutil.which(f"qemu-{machine}-static")
        detail = _first_line(qemu, "--version")
        yield Check("emulator", f"QEMU, {machine}", qemu is not None, detail, "apt install qemu-user", False)
    yield _optional("emulator", "unicorn", "unicorn", "planish[deploy]")


def cuda_compilers() -> Iterator[Check]:
    """What makes machine code for GPUs; neither needs a GPU."""
    nvcc = shutil.which("nvcc")
    cure = "install a CUDA toolkit, or NVRTC"
    yield Check("CUDA", "nvcc", nvcc is not None, _first_line(nvcc, "--version", -2), cure, False)
    yield _optional("CUDA", "NVRTC", "nvidia-cuda-nvrtc", "planish[cuda]")


def extras() -> Iterator[Check]:
    """What single commands need."""
    yield _optional("data", "Pillow (folders of images)", "pillow", "pillow")


def _optional(area: str, what: str, package: str, install: str) -> Check:
    try:
        return Check(area, what, True, metadata.version(package), required=False)
    except metadata.PackageNotFoundError:
        return Check(area, what, False, "it is not installed", f"pip install '{install}'", False)


def _first_line(program: str | None, option: str, line: int = 0) -> str:
    if program is None:
        return "it is not installed"
    printed = subprocess.run([program, option], capture_output=True, text=True).stdout.strip().splitlines()
    return printed[line] if printed else program


CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (
    packages, processor, tvm_loads, linkers, emulators, cuda_compilers, extras,
)  # fmt: skip
