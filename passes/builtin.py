"""The passes that come with planish, in the order in which people use them."""

from .base import Pass
from .canonicalize import Canonicalize
from .fold_batch_norm import FoldBatchNorm
from .prune.prune_channels import PruneChannels
from .prune.sensitivity import Sensitivity
from .quantize.accuracy.cluster_weights import ClusterWeights
from .quantize.accuracy.correct_bias import CorrectBias
from .quantize.accuracy.equalize import Equalize
from .quantize.accuracy.keep_accuracy import KeepAccuracy
from .quantize.accuracy.mix_precision import MixPrecision
from .quantize.accuracy.quantize_sensitivity import QuantizeSensitivity
from .quantize.accuracy.round_weights import RoundWeights
from .quantize.accuracy.smooth import Smooth
from .quantize.calibrate import Calibrate
from .quantize.insert_fake_quant import InsertFakeQuant
from .quantize.lower.lower_integers import LowerIntegers
from .quantize.lower.lower_weights import LowerWeights
from .quantize.quantize_dynamic import QuantizeDynamic
from .sparsify import Sparsify
from .to_half import ToHalf
from .train.finetune import Finetune
from .train.prune_gradually import PruneGradually

PASSES: tuple[type[Pass], ...] = (
    Canonicalize,
    FoldBatchNorm,
    Sensitivity,
    PruneChannels,
    Sparsify,
    Finetune,
    PruneGradually,
    ClusterWeights,
    Equalize,
    Smooth,
    InsertFakeQuant,
    Calibrate,
    CorrectBias,
    RoundWeights,
    QuantizeSensitivity,
    KeepAccuracy,
    MixPrecision,
    LowerIntegers,
    LowerWeights,
    QuantizeDynamic,
    ToHalf,
)
