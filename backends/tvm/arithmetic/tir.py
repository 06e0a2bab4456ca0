"""TVM's TIR expressions and statements under the short name that TVM gives them."""

from typing import Any

from tvm.tirx.script import builder

T: Any = builder  # its annotations leave out that Python numbers are expressions too
