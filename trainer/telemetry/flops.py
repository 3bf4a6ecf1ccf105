"""How much arithmetic one training image costs, counted operator by operator, and how much a GPU could do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16/fp16 tensor-core FLOP/s from the vendor's data sheets; of the names in a device's name the longest counts.
PEAK_FLOPS = {
    "V100": 125e12,
    "T4": 65e12,
    "A10": 125e12,
    "A40": 150e12,
    "A100": 312e12,
    "RTX A6000": 155e12,
    "L4": 121e12,
    "L40": 181e12,
    "L40S": 362e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "B200": 2250e12,
}


def flops_per_image(model: nn.Module, input_shape: tuple[int, ...]) -> float:
    """Floating-point operations of one forward and backward pass per image; frozen parts have no backward.

    Runs on meta tensors: it takes no memory and leaves the model as it was. Pass the bare model (no DDP, no compile).
    The loss and the augmentation are left out, recomputed activations too: MFU is defined on the model's work.
    Batch norms count nothing, synchronised ones do not synchronise here.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    meta = {n: t.detach().to("meta").requires_grad_(t.requires_grad) for n, t in tensors.items()}
    num_images = 2  # batch norm in training mode wants more than one value
    inputs = torch.empty(num_images, *input_shape, device="meta", dtype=torch.float32)
    with _alone(model), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        output = functional_call(model, meta, (inputs,))
        features = output if isinstance(output, Tensor) else output[0]
        if features.requires_grad:
            features.sum().backward()
    return counter.get_total_flops() / num_images


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """Synchronised batch norms refuse meta tensors while they train."""
    synchronised = [part for part in model.modules() if isinstance(part, nn.SyncBatchNorm) and part.training]
    for part in synchronised:
        part.training = False
    try:
        yield
    finally:
        for part in synchronised:
            part.training = True


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The device's peak in bf16 or fp16, or None where it is not known (CPU, other precision, unlisted GPU)."""
    if device.type != "cuda" or precision not in ("bf16", "fp16"):
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(device_name: str) -> float | None:
    """The peak of a GPU by name."""
    words = f" {device_name} ".replace("-", " ")
    names = [name for name in PEAK_FLOPS if f" {name} " in words]
    return PEAK_FLOPS[max(names, key=len)] if names else None
