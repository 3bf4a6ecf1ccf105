"""The proof before step 1: right paths pass and leave no trace, planted defects of every known kind are named."""

import random
from collections.abc import Callable
from typing import Any

import gloo
import pytest
import tiny_model
import torch
from accelerate import Accelerator
from tiny_model import TinyModel
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from trainer.losses.infonce import InfoNCE
from wrong_gathers import (
    gather_scaled_by_world_size,
    gather_with_the_own_rows_gradient_only,
    gather_without_gradient,
    negatives_of_the_own_rank_only,
    offset_of_the_first_rank,
    ranks_in_reverse_order,
    whole_loss_on_every_rank,
)

import trainer.step.proof
from core.errors import DistributedError
from trainer.step.proof import prove_gradients

GROUPS = {"tower", "head", "logit_scale"}
SIZES = {"input_shape": (3, tiny_model.IMAGE_SIZE, tiny_model.IMAGE_SIZE), "embed_dim": tiny_model.EMBED_DIM}


def proof_in_a_group(accumulate: int, plant: Callable[[], None] | None = None, is_bare: bool = False) -> Any:
    """The ratios, or the sentence of the error."""
    if plant is not None:
        plant()
    model = TinyModel(is_noisy=True)
    try:
        wrapped = model if is_bare else DistributedDataParallel(model)
        return prove_gradients(wrapped, InfoNCE(), accumulate=accumulate, **SIZES)
    except DistributedError as error:
        return str(error)


@pytest.mark.parametrize(("num_processes", "accumulate"), [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_the_real_path_passes(num_processes: int, accumulate: int) -> None:
    for ratios in gloo.run(num_processes, proof_in_a_group, accumulate):
        assert ratios == {name: pytest.approx(1, abs=1e-4) for name in GROUPS}


def step_whose_loss_is(factor: float) -> None:
    real = trainer.proof.forward_backward

    def scaled(*args: Any) -> Any:
        return real(*args, backward=lambda loss: (factor * loss).backward())

    trainer.proof.forward_backward = scaled  # type: ignore[assignment]


def doubled() -> None:
    step_whose_loss_is(2.0)


def thirded() -> None:
    step_whose_loss_is(1 / 3)


def never_arriving() -> None:
    step_whose_loss_is(0.0)


def not_a_number() -> None:
    step_whose_loss_is(float("nan"))


@pytest.mark.parametrize(
    ("plant", "accumulate", "cause"),
    [
        (gather_without_gradient, 1, "direction is wrong too"),
        (gather_without_gradient, 2, "direction is wrong too"),
        (gather_with_the_own_rows_gradient_only, 1, "direction is wrong too"),
        (gather_with_the_own_rows_gradient_only, 2, "direction is wrong too"),
        (gather_scaled_by_world_size, 1, "direction is wrong too"),
        (negatives_of_the_own_rank_only, 1, "direction is wrong too"),
        (ranks_in_reverse_order, 1, "direction is wrong too"),
        (offset_of_the_first_rank, 2, "direction is wrong too"),
        (
            whole_loss_on_every_rank,
            1,
            "probably gathered features pass no gradient back to the processes they came from",
        ),
        (doubled, 1, "probably gradients are summed over processes instead of averaged"),
        (thirded, 3, "probably the loss is divided by the number of chunks"),
        (never_arriving, 1, "no gradient arrives at all"),
        (not_a_number, 1, "it is not finite"),
    ],
)
def test_a_planted_defect_is_named_on_every_rank(plant: Callable[[], None], accumulate: int, cause: str) -> None:
    first, second = gloo.run(2, proof_in_a_group, accumulate, plant)
    assert isinstance(first, str), f"passed with {first}"
    assert first == second
    assert first.startswith("gradient proof: the gradient of 'tower' has ")
    assert cause in first and "Repair the gather or the step" in first


def test_a_model_without_ddp_is_caught() -> None:
    first, second = gloo.run(2, proof_in_a_group, 1, None, True)
    assert "direction is wrong" in first and first == second


def test_the_sentence_says_group_ratio_and_cause() -> None:
    [sentence, _] = gloo.run(2, proof_in_a_group, 1, whole_loss_on_every_rank)
    assert sentence == (
        "gradient proof: the gradient of 'tower' has 0.5 times the length of the one-process gradient and differs "
        "from it by 0.5 of it (at most 0.001), processes 2, chunks 1: probably gathered features pass no gradient back "
        "to the processes they came from. Repair the gather or the step before training."
    )


@pytest.mark.parametrize("plant", [None, doubled])
def test_the_proof_leaves_no_trace(plant: Callable[[], None] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TinyModel(is_noisy=True)
    model.tower[2].eval()
    model(torch.randn(4, 3, 4, 4))[0].sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    torch.manual_seed(random.randrange(1000))
    random_state = torch.get_rng_state()
    torch.set_float32_matmul_precision("high")
    try:
        if plant is None:
            prove_gradients(model, InfoNCE(), accumulate=2, **SIZES)
        else:
            monkeypatch.setattr(trainer.step.proof, "forward_backward", trainer.proof.forward_backward)
            plant()
            with pytest.raises(DistributedError):
                prove_gradients(model, InfoNCE(), accumulate=3, **SIZES)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [part.training for part in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    "loss_fn", [InfoNCE(label_smoothing=0.2), InfoNCE(positives="multi"), InfoNCE(max_caption_similarity=0.1)]
)
def test_options_of_the_loss_do_not_disturb_it(loss_fn: InfoNCE) -> None:
    assert set(prove_gradients(TinyModel(), loss_fn, accumulate=3, **SIZES)) == GROUPS


def test_frozen_groups_are_left_out() -> None:
    model = TinyModel()
    model.tower.requires_grad_(False)
    assert set(prove_gradients(model, InfoNCE(), accumulate=2, **SIZES)) == {"head", "logit_scale"}


class HalfPrecisionModel(TinyModel):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(images)


def test_rounding_is_told_from_a_wrong_gradient() -> None:
    with pytest.raises(DistributedError, match="only rounded, as when a part of the model computes in half precision"):
        prove_gradients(HalfPrecisionModel(), InfoNCE(), accumulate=3, **SIZES)


def ratios_under_accelerate() -> tuple[dict[str, float], bool]:
    """With the autocast that accelerate hides in the forward, whose rounding would look like a wrong gradient."""
    model = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(TinyModel())
    ratios = prove_gradients(model, InfoNCE(), accumulate=3, **SIZES)
    x = torch.randn(4, 3, 4, 4)
    still_rounds = not torch.equal(model(x)[0], TinyModel()(x)[0])
    return ratios, still_rounds


def test_accelerates_autocast_is_kept_out_and_put_back() -> None:
    [(ratios, still_rounds)] = gloo.run(1, ratios_under_accelerate)
    assert ratios == {name: pytest.approx(1, abs=1e-4) for name in GROUPS}
    assert still_rounds


def test_the_proof_works_in_float64_too() -> None:
    ratios = prove_gradients(TinyModel(torch.float64), InfoNCE(), accumulate=2, tolerance=1e-9, **SIZES)
    assert set(ratios) == GROUPS
