"""The blocked loss against plain cross-entropy and obvious loops: values, gradients, duplicates; memory: exactness."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trainer.losses import LOSSES
from trainer.losses.infonce import InfoNCE, negatives_report

from core.errors import ConfigError

SIZES = {"num_pairs": st.integers(1, 9), "embed_dim": st.integers(1, 6), "seed": st.integers(0, 10**6)}
OPTIONS = {
    "block_size": st.integers(0, 10),
    "positives": st.sampled_from(["mask", "multi"]),
    "label_smoothing": st.sampled_from([0.0, 0.1, 0.5]),
    "max_caption_similarity": st.sampled_from([None, 0.3, 0.9]),
}


def unit(num_rows: int, embed_dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(num_rows, embed_dim, generator=generator, dtype=torch.float64), dim=1)
    return rows.requires_grad_()


def leaves(num_pairs: int, embed_dim: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    scale = torch.tensor(1 + seed % 20, dtype=torch.float64, requires_grad=True)
    return unit(num_pairs, embed_dim, seed), unit(num_pairs, embed_dim, seed + 1), scale


def in_one_process(loss_fn: InfoNCE, image: Tensor, text: Tensor, scale: Tensor, groups: Tensor) -> Tensor:
    return loss_fn(image, text, image, text, scale, groups, groups, 0)


def gradients(loss: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs, retain_graph=True))


def assert_same_loss_and_gradients(actual: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    for one, other in zip(gradients(actual, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def double_loop(loss_fn: InfoNCE, image: Tensor, text: Tensor, scale: Tensor, groups: Tensor) -> Tensor:
    """The definition, pair by pair."""
    total = torch.zeros((), dtype=torch.float64)
    for rows, columns in ((image, text), (text, image)):
        for i in range(len(rows)):
            logits, shares = [], []
            for j in range(len(rows)):
                same_image = bool(groups[i] == groups[j])
                limit = loss_fn.max_caption_similarity
                alike = limit is not None and float(text[i].detach() @ text[j].detach()) > limit
                is_positive = i == j or (loss_fn.positives == "multi" and same_image)
                if is_positive or not (same_image or alike):
                    logits.append(scale * rows[i] @ columns[j])
                    shares.append(float(is_positive))
            target = torch.tensor(shares, dtype=torch.float64) / sum(shares)
            target = target * (1 - loss_fn.label_smoothing) + loss_fn.label_smoothing / len(shares)
            total = total - (target * torch.log_softmax(torch.stack(logits), 0)).sum()
    return total / (2 * len(image))


@given(**SIZES, block_size=OPTIONS["block_size"], label_smoothing=OPTIONS["label_smoothing"])
@settings(max_examples=60, deadline=None)
def test_distinct_pairs_give_the_plain_cross_entropy(
    num_pairs: int, embed_dim: int, seed: int, block_size: int, label_smoothing: float
) -> None:
    inputs = image, text, scale = leaves(num_pairs, embed_dim, seed)
    loss_fn = InfoNCE(label_smoothing, block_size)
    logits, target = scale * image @ text.T, torch.arange(num_pairs)
    there, back = (F.cross_entropy(x, target, label_smoothing=label_smoothing) for x in (logits, logits.T))
    expected = (there + back) / 2
    actual = in_one_process(loss_fn, image, text, scale, torch.arange(num_pairs))
    assert_same_loss_and_gradients(actual, expected, inputs)
    assert_same_loss_and_gradients(loss_fn.reference(image, text, scale), expected, inputs)


@given(**SIZES, **OPTIONS, num_images=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_duplicates_are_treated_as_in_the_double_loop(
    num_pairs: int, embed_dim: int, seed: int, num_images: int, **options: Any
) -> None:
    inputs = image, text, scale = leaves(num_pairs, embed_dim, seed)
    groups = torch.randint(num_images, (num_pairs,), generator=torch.Generator().manual_seed(seed))
    loss_fn = InfoNCE(**options)
    actual = in_one_process(loss_fn, image, text, scale, groups)
    assert_same_loss_and_gradients(actual, double_loop(loss_fn, image, text, scale, groups), inputs)


@given(**SIZES, **OPTIONS, num_ranks=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_slices_at_their_offsets_average_to_the_whole(
    num_pairs: int, embed_dim: int, seed: int, num_ranks: int, **options: Any
) -> None:
    inputs = image, text, scale = leaves(num_pairs * num_ranks, embed_dim, seed)
    groups = torch.arange(len(image)) // 2
    loss_fn = InfoNCE(**options)
    parts = []
    for offset in range(0, len(image), num_pairs):
        rows = slice(offset, offset + num_pairs)
        parts.append(loss_fn(image[rows], text[rows], image, text, scale, groups[rows], groups, offset))
    whole = in_one_process(loss_fn, image, text, scale, groups)
    assert_same_loss_and_gradients(torch.stack(parts).mean(), whole, inputs)


@pytest.mark.parametrize("options", [{}, {"positives": "multi", "label_smoothing": 0.1, "max_caption_similarity": 0.5}])
def test_gradients_are_those_of_finite_differences(options: dict[str, Any]) -> None:
    groups = torch.tensor([0, 1, 1, 2, 3])
    loss_fn = InfoNCE(block_size=2, **options)
    # Rows and columns are separate inputs, as after a gather. Captions hold still: the mask depends on them.
    rows = (unit(2, 3, 1), unit(2, 3, 2).detach())
    columns = (unit(5, 3, 3), unit(5, 3, 4).detach())
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda image, all_images, scale: loss_fn(image, rows[1], all_images, columns[1], scale, groups[1:3], groups, 1),
        (rows[0], columns[0], scale),
    )


def test_frozen_texts_change_no_other_gradient() -> None:
    image, text, scale = leaves(7, 4, 0)
    groups = torch.arange(7)
    expected = gradients(in_one_process(InfoNCE(0.1, 3), image, text, scale, groups), (image, scale))
    frozen = in_one_process(InfoNCE(0.1, 3), image, text.detach(), scale, groups)
    for one, other in zip(gradients(frozen, (image, scale)), expected, strict=True):
        assert torch.equal(one, other)


def test_swapping_images_and_texts_changes_nothing() -> None:
    image, text, scale = leaves(8, 4, 0)
    groups = torch.arange(8) // 2
    there = in_one_process(InfoNCE(0.1, 3, "multi"), image, text, scale, groups)
    back = in_one_process(InfoNCE(0.1, 3, "multi"), text, image, scale, groups)
    torch.testing.assert_close(there, back, rtol=1e-12, atol=0)


def test_features_without_information_give_log_n() -> None:
    same = F.normalize(torch.ones(6, 4, dtype=torch.float64), dim=1)
    loss = in_one_process(InfoNCE(block_size=4), same, same, torch.tensor(10.0), torch.arange(6))
    assert float(loss) == pytest.approx(math.log(6), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_less_than_float64_is_computed_in_float32_even_under_autocast(dtype: torch.dtype) -> None:
    image, text, scale = (x.detach().to(dtype) for x in leaves(9, 8, 3))
    groups = torch.arange(9)
    expected = in_one_process(InfoNCE(), image.double(), text.double(), scale.double(), groups)
    image.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = in_one_process(InfoNCE(), image, text, scale, groups)
    loss.backward()
    assert loss.dtype == torch.float32 and image.grad is not None and image.grad.dtype == dtype
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_no_numbers_give_a_loss_that_is_none(which: int, value: float) -> None:
    image, text, scale = (x.detach().clone() for x in leaves(6, 4, 0))
    (image, text)[which][4, 1] = value
    loss = in_one_process(InfoNCE(0.1, 4, "multi", 0.9), image, text, scale, torch.arange(6) // 2)
    assert math.isnan(float(loss))


def test_the_report_counts_false_negatives_like_a_double_loop() -> None:
    text = unit(12, 2, 5).detach()
    groups = torch.arange(12) // 3
    pairs = [(i, j) for i in range(4, 10) for j in range(12) if i != j]
    false = [(i, j) for i, j in pairs if groups[i] == groups[j] or float(text[i] @ text[j]) > 0.8]
    by_id = [(i, j) for i, j in pairs if groups[i] == groups[j]]
    for limit, expected in ((0.8, false), (None, by_id)):
        report = negatives_report(text[4:10], text, groups[4:10], groups, 4, max_caption_similarity=limit, block_size=4)
        assert float(report["false_negative_rate"]) == pytest.approx(len(expected) / len(pairs))
        assert float(report["valid_negatives"]) == pytest.approx(1 - len(expected) / len(pairs))
        assert float(report["rows_with_false_negative"]) == pytest.approx(len({i for i, _ in expected}) / 6)
    assert len(false) > len(by_id)


def test_the_table_names_the_loss() -> None:
    assert LOSSES["infonce"] is InfoNCE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0: it is a share"),
        ({"block_size": -1}, "block_size is -1: give a number of rows"),
        ({"positives": "all"}, "positives is 'all'. Use 'mask' or 'multi'"),
        ({"max_caption_similarity": 1.5}, "max_caption_similarity is 1.5: it is a cosine"),
    ],
)
def test_wrong_options_are_refused_with_the_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InfoNCE(**options)
