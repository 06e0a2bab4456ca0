"""Importing this module registers the passes that come with planish."""

from .canonicalize import Canonicalize
from .fold_batch_norm import FoldBatchNorm
from .prune.prune_channels import PruneChannels
from .quantize.calibrate import Calibrate
from .quantize.insert_fake_quant import InsertFakeQuant

__all__ = ["Calibrate", "Canonicalize", "FoldBatchNorm", "InsertFakeQuant", "PruneChannels"]
