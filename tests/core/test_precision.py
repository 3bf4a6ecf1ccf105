"""Which arithmetic a recipe gets on which device."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from core.errors import ConfigError
from core.precision import choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("computes", [True, False])
def test_auto_is_bf16_only_where_the_hardware_computes_in_it(monkeypatch: pytest.MonkeyPatch, computes: bool) -> None:
    # As torch answers on a T4: bf16 works, by emulation.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or computes
    )
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    assert choose_precision("auto", GPU) == ("bf16" if computes else "no")
    assert choose_precision("bf16", GPU) == "bf16"  # who asks for it gets it
    assert choose_precision("auto", CPU) == "no"


def test_fp16_needs_a_gpu() -> None:
    assert choose_precision("fp16", GPU) == "fp16"
    with pytest.raises(ConfigError, match="precision is fp16, which needs a GPU. Set precision=no."):
        choose_precision("fp16", CPU)
