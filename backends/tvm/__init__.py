"""The TVM hand-off: Graph -> Relax with kernels of our own -> compiled code."""

from .versions import check_versions

check_versions()
