"""Planted defects of every known kind are named by the proof, on every rank, with their likely cause."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gloo
import pytest
import torch
import wrong_steps
from tiny_model import EMBED_DIM, IMAGE_SIZE, TinyModel
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from wrong_gathers import (
    gather_scaled_by_world_size,
    gather_with_the_own_rows_gradient_only,
    gather_without_gradient,
    negatives_of_the_own_rank_only,
    offset_of_the_first_rank,
    ranks_in_reverse_order,
    whole_loss_on_every_rank,
)
from wrong_steps import AveragedQueue, Queue, dropped_scalar, ignored_ids, ignored_labels, wrong_ids

import trainer.step.proof
from core.errors import DistributedError
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.nt_xent import NTXent
from trainer.objectives.objective import Objective, Rows
from trainer.objectives.siglip import SigLIP
from trainer.objectives.supcon import SupCon
from trainer.step.proof import ProofInputs, prove_gradients

INPUTS = ProofInputs((3, IMAGE_SIZE, IMAGE_SIZE), EMBED_DIM)


def sentence_of(
    objective: Objective, accumulate: int = 1, plant: Callable[[], None] | None = None, is_bare: bool = False
) -> str:
    """The sentence of the error, in a process of a group."""
    if plant is not None:
        plant()
    model = TinyModel(objective, is_noisy=True)
    wrapped = model if is_bare else DistributedDataParallel(model)
    try:
        ratios = prove_gradients(wrapped, objective, objective.initial_state(EMBED_DIM), INPUTS, accumulate=accumulate)
    except DistributedError as error:
        return str(error)
    return f"passed with {ratios}"


def step_whose_loss_is(factor: float) -> None:
    real = trainer.step.proof.forward_backward

    def scaled(*args: Any) -> Any:
        return real(*args, backward=lambda loss: (factor * loss).backward())

    trainer.step.proof.forward_backward = scaled  # type: ignore[assignment]


def doubled() -> None:
    step_whose_loss_is(2.0)


def thirded() -> None:
    step_whose_loss_is(1 / 3)


def tripled() -> None:
    step_whose_loss_is(3.0)


def never_arriving() -> None:
    step_whose_loss_is(0.0)


def not_a_number() -> None:
    step_whose_loss_is(float("nan"))


@pytest.mark.parametrize(
    ("plant", "accumulate", "cause"),
    [
        (gather_without_gradient, 1, "direction is wrong too"),
        (gather_without_gradient, 2, "direction is wrong too"),
        (gather_with_the_own_rows_gradient_only, 2, "direction is wrong too"),
        (gather_scaled_by_world_size, 1, "direction is wrong too"),
        (negatives_of_the_own_rank_only, 1, "direction is wrong too"),
        (ranks_in_reverse_order, 1, "direction is wrong too"),
        (offset_of_the_first_rank, 2, "direction is wrong too"),
        (wrong_ids, 1, "direction is wrong too"),
        (
            whole_loss_on_every_rank,
            1,
            "probably gathered features pass no gradient back to the processes they came from",
        ),
        (doubled, 1, "probably gradients are summed over processes instead of averaged"),
        (thirded, 3, "probably the loss is divided by the number of chunks"),
        (tripled, 3, "probably each chunk counts as a batch of its own"),
        (never_arriving, 1, "no gradient arrives at all"),
        (not_a_number, 1, "it is not finite"),
    ],
)
def test_a_planted_defect_is_named_on_every_rank(plant: Callable[[], None], accumulate: int, cause: str) -> None:
    first, second = gloo.run(2, sentence_of, InfoNCE(), accumulate, plant)
    assert first == second
    assert first.startswith("gradient proof: the gradient of 'tower' has "), first
    assert cause in first and "Repair the gather or the step before training." in first


@pytest.mark.parametrize("objective", [NTXent(), SupCon()], ids=lambda o: type(o).__name__)
def test_a_gather_without_gradient_is_seen_by_objectives_of_pictures(objective: Objective) -> None:
    first, second = gloo.run(2, sentence_of, objective, 1, gather_without_gradient)
    assert first == second and first.startswith("gradient proof: the gradient of "), first


def test_a_model_without_ddp_is_caught() -> None:
    first, second = gloo.run(2, sentence_of, InfoNCE(), 1, None, True)
    assert "direction is wrong" in first and first == second


def test_a_scalar_that_gets_no_gradient_is_caught() -> None:
    first, second = gloo.run(2, sentence_of, SigLIP(), 1, dropped_scalar)
    assert first == second and first.startswith("gradient proof: the gradient of 'logit_bias' has 0 times")


def test_the_sentence_says_group_ratio_and_cause() -> None:
    [sentence, _] = gloo.run(2, sentence_of, InfoNCE(), 1, whole_loss_on_every_rank)
    assert sentence == (
        "gradient proof: the gradient of 'tower' has 0.5 times the length of what one process gives and differs "
        "from it by 0.5 of it (at most 0.001), processes 2, chunks 1: probably gathered features pass no gradient back "
        "to the processes they came from. Repair the gather or the step before training."
    )


def test_a_state_that_differs_between_ranks_is_caught() -> None:
    first, second = gloo.run(2, sentence_of, AveragedQueue())
    assert first == second and first.startswith("objective proof: after a step the state 'queue' differs"), first
    assert "Make it of `rows.everywhere` alone." in first
    assert gloo.run(1, sentence_of, AveragedQueue())[0].startswith("passed")  # alone, the average is the queue


@pytest.mark.parametrize(
    ("objective", "plant", "sentence"),
    [
        (InfoNCE(), ignored_ids, "InfoNCE asks for 'image_id' and gives the same loss"),
        (SupCon(), ignored_labels, "SupCon asks for 'label' and gives the same loss"),
    ],
)
def test_a_relation_that_does_not_matter_is_caught(
    objective: Objective, plant: Callable[[], None], sentence: str
) -> None:
    [said] = gloo.run(1, sentence_of, objective, 2, plant)
    assert said.startswith(f"objective proof: {sentence}, ") and "take" in said and "out of its columns" in said


class HalfPrecisionModel(TinyModel):
    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(inputs)


def test_rounding_is_told_from_a_wrong_gradient() -> None:
    with pytest.raises(DistributedError, match="only rounded, as when a part of the model computes in half precision"):
        prove_gradients(HalfPrecisionModel(), InfoNCE(), {}, INPUTS, accumulate=3)


def test_the_loss_itself_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainer.step.proof.forward_backward

    def with_another_value(*args: Any) -> Any:
        result = real(*args)
        return type(result)(result.loss * 1.5, result.rows, result.scalars)

    monkeypatch.setattr(trainer.step.proof, "forward_backward", with_another_value)
    with pytest.raises(DistributedError, match="gradient proof: the loss has 1.5 times the length"):
        prove_gradients(TinyModel(), InfoNCE(), {}, INPUTS)


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (1 / 3, "0.3333 times the length of what one process gives and differs from it by 0.67 of it (at most 0.001), "
         "processes 1, chunks 3: probably the loss is divided by the number of chunks."),
        (3.0, "differs from it by 2 of it (at most 0.001), processes 1, chunks 3: probably each chunk counts as a "
         "batch of its own."),
        (0.0, "differs from it by 1 of it (at most 0.001), processes 1, chunks 3: no gradient arrives at all."),
        (float("nan"), "chunks 3: it is not finite, or the reference is zero."),
        (-1.0, "chunks 3: its direction is wrong too"),
        (1.02, "chunks 3: it is only rounded"),
        (4.0, "chunks 3: only its length is wrong, as where something is multiplied or divided once too often."),
    ],
)  # fmt: skip
def test_a_step_that_is_scaled_is_named_in_one_process(
    factor: float, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.step.proof.forward_backward

    def scaled(*args: Any) -> Any:
        return real(*args, backward=lambda loss: (factor * loss).backward())

    monkeypatch.setattr(trainer.step.proof, "forward_backward", scaled)
    with pytest.raises(DistributedError) as error:
        prove_gradients(TinyModel(), InfoNCE(), {}, INPUTS, accumulate=3)
    assert str(error.value).startswith("gradient proof: the gradient of 'tower' has ") and says in str(error.value)


@pytest.mark.parametrize("factor", [1.0009, 0.9991])
def test_what_is_within_the_tolerance_passes(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainer.step.proof.forward_backward

    def scaled(*args: Any) -> Any:
        return real(*args, backward=lambda loss: (factor * loss).backward())

    monkeypatch.setattr(trainer.step.proof, "forward_backward", scaled)
    ratios = prove_gradients(TinyModel(), InfoNCE(), {}, INPUTS)
    assert ratios == {name: pytest.approx(factor, abs=1e-5) for name in ("tower", "head", "logit_scale")}
    with pytest.raises(DistributedError):
        prove_gradients(TinyModel(), InfoNCE(), {}, INPUTS, tolerance=5e-4)


class Forgetful(Queue):
    """Keeps nothing in its second step, as where what comes after the first one was never looked at."""

    def next_state(self, rows: Rows, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        is_ours = rows.own is not rows.everywhere
        kept = super().next_state(rows, state)
        return {**kept, "queue": kept["queue"] * 0} if is_ours and bool((state["ids"] >= 0).any()) else kept


def test_a_state_that_goes_wrong_in_the_second_step_is_caught() -> None:
    objective = Forgetful()
    with pytest.raises(DistributedError, match="after a step the state 'queue' differs from that of one process by 1 "):
        prove_gradients(TinyModel(objective), objective, objective.initial_state(EMBED_DIM), INPUTS)


@pytest.mark.parametrize(("objective", "name"), [(InfoNCE(), "image_id"), (SupCon(), "label")])
def test_a_relation_that_does_not_matter_is_caught_in_one_process(
    objective: Objective, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(objective), "terms", type(objective).terms)
    wrong_steps.blind(type(objective), name)
    with pytest.raises(DistributedError, match=f"asks for '{name}' and gives the same loss"):
        prove_gradients(TinyModel(objective), objective, {}, INPUTS, accumulate=2)


@pytest.mark.parametrize("other", [(0.9, 0.1), (1.0, 0.02), (0.5, float("nan"))])
def test_the_rank_that_is_furthest_off_decides(other: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"tower": (1.0005, 0.0005)}
    for ranks in ([good, {"tower": other}, good], [{"tower": other}, good, good]):
        monkeypatch.setattr(trainer.step.proof, "gather_objects", lambda figures, ranks=ranks: ranks)
        with pytest.raises(DistributedError, match=f"'tower' has {other[0]:g} times"):
            trainer.step.proof._worst_over_ranks(good, 1e-3, 1)
    monkeypatch.setattr(trainer.step.proof, "gather_objects", lambda figures: [{"tower": (1.0, 1e-5)}, good])
    assert trainer.step.proof._worst_over_ranks(good, 1e-3, 1) == good
