"""Every float model of torchvision: classification, segmentation, detection, video and optical flow."""

from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from coverage_zoo import Entry, random_tensor

# The first row that fits gives the shapes of the inputs. Convolutional models get 64 pixels a side, where every layer
# still has a map to work on; what is built for one size gets that size. Channels do not depend on it, proof times do.
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "raft_*": ((1, 3, 128, 128), (1, 3, 128, 128)),
    "mvit_*": ((1, 3, 16, 224, 224),),
    "s3d": ((1, 3, 16, 224, 224),),
    "swin3d_*": ((1, 3, 8, 112, 112),),
    "r3d_18": ((1, 3, 8, 64, 64),),
    "mc3_18": ((1, 3, 8, 64, 64),),
    "r2plus1d_18": ((1, 3, 8, 64, 64),),
    "vit_*_32": ((1, 3, 128, 128),),
    "vit_*": ((1, 3, 112, 112),),
    "maxvit_t": ((1, 3, 224, 224),),
    "inception_v3": ((1, 3, 96, 96),),
    "*": ((1, 3, 64, 64),),
}
DETECTORS = ("*rcnn_*", "retinanet_*", "fcos_*", "ssd*")
# Every proposal is good enough, so that all heads have work to do, and there are few, so that it is not much.
FEW_PROPOSALS = {
    "box_score_thresh": 0.0,
    "box_detections_per_img": 10,
    "box_batch_size_per_image": 32,
    "rpn_post_nms_top_n_test": 32,
    "rpn_post_nms_top_n_train": 32,
}
# Their initialisation draws from a truncated normal by inverting its distribution, which takes minutes.
SLOW_TO_INITIALIZE = ("googlenet", "inception_v3")


def zoo_entries() -> list[Entry]:
    from torchvision.models import list_models

    names = [name for name in list_models() if "quantized" not in name]
    return [_detector(name) if _fits(name, DETECTORS) else _plain(name) for name in names]


def _plain(name: str) -> Entry:
    shapes = next(shapes for pattern, shapes in SHAPES.items() if fnmatch(name, pattern))
    options: dict[str, Any] = {"init_weights": False} if name in SLOW_TO_INITIALIZE else {}
    options |= {"image_size": shapes[0][-1]} if name.startswith("vit_") else {}
    return Entry(name, partial(_build, name, **options), lambda: tuple(random_tensor(*shape) for shape in shapes))


def _build(name: str, **options: Any) -> torch.nn.Module:
    from torchvision.models import get_model

    if _fits(name, DETECTORS) or name.startswith(("fcn", "deeplab", "lraspp")):
        options["weights_backbone"] = None
    return get_model(name, weights=None, **options)


def _detector(name: str) -> Entry:
    """Two images of different sizes."""
    options: dict[str, Any] = {} if name.startswith("ssd") else {"min_size": 128, "max_size": 224}
    options |= FEW_PROPOSALS if "rcnn" in name else {"score_thresh": 0.0, "detections_per_img": 10}
    images = [random_tensor(3, 128, 160).sigmoid(), random_tensor(3, 160, 128).sigmoid()]
    return Entry(name, partial(_build, name, **options), lambda: (images,), partial(_targets, name))


def _targets(name: str) -> list[dict[str, torch.Tensor]]:
    """Two boxes in each image, with a mask and key points where the model learns those."""
    targets = []
    for height, width in ((128, 160), (160, 128)):
        boxes = torch.tensor([[10.0, 10.0, 90.0, 100.0], [30.0, 40.0, 120.0, 120.0]])
        target = {"boxes": boxes, "labels": torch.tensor([1, 1])}
        if name.startswith("maskrcnn"):
            masks = torch.zeros(2, height, width, dtype=torch.uint8)
            masks[:, 40:100, 40:90] = 1
            target["masks"] = masks
        if name.startswith("keypointrcnn"):
            target["keypoints"] = torch.tensor([50.0, 60.0, 1.0]).expand(2, 17, 3).contiguous()
        targets.append(target)
    return targets


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
