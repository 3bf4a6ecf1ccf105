"""In what arithmetic a model runs on a device, where a recipe leaves that open or asks for what the device lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from core.errors import ConfigError

if TYPE_CHECKING:
    import torch

Precision = Literal["no", "bf16", "fp16"]


def choose_precision(wanted: Precision | Literal["auto"], device: torch.device) -> Precision:
    """`wanted`, or for auto bf16 where the hardware computes in it, else no.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    if wanted == "auto":
        return "bf16" if computes_bf16(device) else "no"
    if wanted == "fp16" and device.type != "cuda":
        raise ConfigError("precision is fp16, which needs a GPU. Set precision=no.")
    return wanted


def autocast_type(precision: Precision) -> torch.dtype | None:
    """The type in which autocast multiplies; None: it is not used."""
    import torch

    return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def computes_bf16(device: torch.device) -> bool:
    """Whether a GPU has bf16 arithmetic; torch emulates it on older ones (T4, V100), slower than float32."""
    import torch

    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)
