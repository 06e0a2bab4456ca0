"""A wrong TVM package is found when the backend is imported."""

import subprocess
import sys

FAKE = """
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: {answer} if name == "apache-tvm-ffi" else real(name)
from planish.ir.errors import UsageError
try:
    import planish.backends.tvm
except UsageError as error:
    print(error)
"""


def imported(answer: str) -> str:
    code = FAKE.format(answer=answer)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_another_ffi_version_is_refused_with_what_to_install():
    assert imported('"0.1.15.post2"') == (
        "the TVM backend: apache-tvm-ffi 0.1.15.post2 is installed; expected 0.1.14.post1 (others crash inside TVM); "
        "run: pip install 'apache-tvm==0.27.0.post1' 'apache-tvm-ffi==0.1.14.post1'."
    )


def test_the_right_versions_are_taken_without_a_word():
    assert imported("real(name)") == ""
