"""torchao's PT2E quantization-aware training, as its users would, at any width of weights and activations."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import torch
from torch import nn


def pt2e_qat(
    model: nn.Module, batches: Iterable, bits: int, steps: int, rate: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    """prepare_qat_pt2e with the quantizer for x86, trained by SGD with a cosine schedule, then convert_pt2e.

    After two thirds of the steps observers stop, as torchao's own recipes have it. Below 8 bits the levels of the
    quantizer's specs are narrowed; what is returned simulates its integers in float. An ImportError without torchao.
    """
    from torchao.quantization.pt2e import (
        disable_observer,
        move_exported_model_to_eval,
        move_exported_model_to_train,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = _narrowed(x86.get_default_x86_inductor_quantization_config(is_qat=True), bits)
    image = torch.zeros(2, 3, 32, 32)
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    exported = torch.export.export(model, (image,), dynamic_shapes=dynamic).module()
    prepared = prepare_qat_pt2e(exported, x86.X86InductorQuantizer().set_global(config))
    move_exported_model_to_train(prepared)
    optimizer = torch.optim.SGD(prepared.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step, (images, labels) in enumerate(itertools.islice(_repeated(batches), steps)):
        if step == 2 * steps // 3:
            prepared.apply(disable_observer)
        optimizer.zero_grad()
        nn.functional.cross_entropy(prepared(images), labels).backward()
        optimizer.step()
        schedule.step()
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    return converted


def _narrowed(config, bits: int):
    """The configuration with so many bits: activations from 0, weights symmetric."""
    high = 2 ** (bits - 1) - 1
    activation = dataclasses.replace(config.input_activation, quant_max=2**bits - 1)
    weight = dataclasses.replace(config.weight, quant_min=-high if bits < 8 else -high - 1, quant_max=high)
    return dataclasses.replace(config, input_activation=activation, output_activation=activation, weight=weight)


def _repeated(batches: Iterable) -> Iterable:
    while True:
        yield from batches
