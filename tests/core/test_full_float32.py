"""Inside, a product is what float32 gives; outside, all is as the program set it, by the old names or the new."""

import pytest
import torch

from core.full_float32 import full_float32


@pytest.fixture
def switches():
    yield
    torch.set_float32_matmul_precision("highest")


def state():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_switches_come_back(switches, precision):
    torch.set_float32_matmul_precision(precision)
    before = state()
    with full_float32():
        assert state() == ("ieee", "ieee")
    assert state() == before and torch.get_float32_matmul_precision() == precision


def test_a_switch_of_one_backend_comes_back_after_an_error(switches):
    """Torch refuses to name one precision for all backends then."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    before = state()
    with pytest.raises(ValueError), full_float32():
        raise ValueError
    assert state() == before and before[1] == "bf16"


def test_a_product_has_the_digits_of_float32(switches):
    a, b = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)), torch.eye(256)
    torch.set_float32_matmul_precision("medium")
    with full_float32():
        assert torch.equal(a @ b, a)
