"""Which columns belong together, and how trustworthy negatives are, against loops."""

from __future__ import annotations

import pytest
import torch
from objective_rows import Values, make_values

from trainer.objectives import negatives
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.negatives import negatives_report
from trainer.objectives.objective import Block, Rows
from trainer.objectives.pairs import own_columns, same, shares

IDS = torch.tensor([7, 8, 7, 9, 8, 7])
BLOCK = Block({"image_id": IDS[2:4]}, {"image_id": IDS}, 2, {}, {})


def test_own_columns_begin_at_the_offset() -> None:
    assert own_columns(BLOCK, "image_id").int().tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]


def test_same_columns_have_the_row_s_value() -> None:
    assert same(BLOCK, "image_id").int().tolist() == [[1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0]]


def test_a_row_is_the_same_as_itself_whatever_its_value() -> None:
    ids = torch.tensor([float("nan"), 1.0])
    assert same(Block({"x": ids}, {"x": ids}, 0, {}, {}), "x").tolist() == [[True, False], [False, True]]


def test_shares_are_equal_and_none_where_nothing_is_chosen() -> None:
    chosen = torch.tensor([[True, False, True, True, True], [False] * 5])
    found = shares(chosen, torch.float64)
    assert found.dtype == torch.float64 and found.tolist() == [[0.25, 0, 0.25, 0.25, 0.25], [0] * 5]


@pytest.mark.parametrize("block", [1, 4, 512])
@pytest.mark.parametrize("captions", ["drawn", "all"])
def test_the_report_counts_false_negatives_like_a_double_loop(
    captions: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negatives, "_BLOCK", block)
    values = make_values(InfoNCE(captions=captions), 12, embed_dim=2)  # type: ignore[arg-type]
    ids, texts = values.given["image_id"], values.features["text"].detach()
    first = texts[:, 0] if captions == "all" else texts
    pairs = [(i, j) for i in range(4, 10) for j in range(12) if i != j]
    for limit in (0.8, 2.0):
        false = [(i, j) for i, j in pairs if ids[i] == ids[j] or float(first[i] @ first[j]) > limit]
        report = negatives_report(values.rows(4, 10), limit)
        assert float(report["false_negative_rate"]) == pytest.approx(len(false) / len(pairs))
        assert float(report["valid_negatives"]) == pytest.approx(1 - len(false) / len(pairs))
        assert float(report["rows_with_false_negative"]) == pytest.approx(len({i for i, _ in false}) / 6)
        assert 0 < len(false) < len(pairs)
    assert len(report) == 4


@pytest.mark.parametrize("left_out_above", [None, 0.98])
def test_a_false_negative_counts_where_the_objective_keeps_it(left_out_above: float | None) -> None:
    values = make_values(InfoNCE(), 12, embed_dim=2)
    ids, texts = values.given["image_id"], values.features["text"].detach()
    kept = set()
    for i in range(4, 10):
        for j in range(12):
            cosine = float(texts[i] @ texts[j])
            if i != j and ids[i] != ids[j] and cosine > 0.8 and (left_out_above is None or cosine <= left_out_above):
                kept.add(i)
    report = negatives_report(values.rows(4, 10), 0.8, left_out_above)
    assert float(report["rows_with_counted_false_negative"]) == pytest.approx(len(kept) / 6)
    assert 0 < len(kept) < 6


def rows_of(cosine: float) -> Rows:
    """Two captions of different images with that cosine."""
    text = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]])
    return Values({"text": text}, {"image_id": torch.arange(2)}, {}).rows()


def test_captions_closer_than_0_95_say_the_same() -> None:
    report = negatives_report(rows_of(0.96))
    assert float(report["false_negative_rate"]) == float(report["rows_with_false_negative"]) == 1
    assert float(negatives_report(rows_of(0.94))["false_negative_rate"]) == 0


@pytest.mark.parametrize(("left_out_above", "counted"), [(None, 1), (0.97, 1), (0.95, 0), (0.5, 0)])
def test_what_the_objective_leaves_out_counts_for_nothing(left_out_above: float | None, counted: int) -> None:
    report = negatives_report(rows_of(0.96), left_out_above=left_out_above)
    assert float(report["rows_with_counted_false_negative"]) == counted
    assert float(report["rows_with_false_negative"]) == 1


def test_one_row_alone_has_no_negatives() -> None:
    alone = Values({"text": torch.ones(1, 2)}, {"image_id": torch.zeros(1)}, {}).rows()
    assert float(negatives_report(alone)["false_negative_rate"]) == 0


def test_half_precision_captions_are_compared_in_float32() -> None:
    text = torch.tensor([[1.0, 0.0], [0.9497, 0.3131]]).half()
    rows = Values({"text": text}, {"image_id": torch.arange(2)}, {}).rows()
    assert float(negatives_report(rows)["false_negative_rate"]) == 0
