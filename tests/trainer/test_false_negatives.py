"""A run whose batches push apart what belongs together says so once, and what to do."""

from __future__ import annotations

from pathlib import Path

import gloo
import pytest
from training_runs import recipe, train_worker

from trainer.run.folder import read_events
from trainer.telemetry import names
from trainer.telemetry.false_negatives import false_negative_warning


@pytest.mark.parametrize(("share", "is_said"), [(0.2, False), (0.21, True), (1.0, True)])
def test_more_than_a_fifth_of_the_rows_is_too_many(share: float, is_said: bool) -> None:
    said = false_negative_warning({names.COUNTED_FALSE_NEGATIVES: share, names.LOSS: 1.0})
    assert (said is not None) == is_said
    if said:
        assert said.startswith(f"{100 * share:.0f} % of a batch's rows") and "max_caption_similarity=0.95" in said


def test_objectives_without_captions_are_not_warned_of() -> None:
    assert false_negative_warning({names.LOSS: 1.0}) is None


def warn_always() -> None:
    from trainer.telemetry import false_negatives

    false_negatives.MOST_ROWS = -1.0


def test_a_run_is_warned_once(tmp_path: Path) -> None:
    assert gloo.run(2, train_worker, recipe(tmp_path, epochs=1), None, None, warn_always) == [0, 0]
    events = read_events(tmp_path / "run")
    (warned,) = [event for event in events if event["event"] == "false negatives"]
    assert warned["step"] == 1 and "objective.max_caption_similarity" in warned["detail"]
    assert len([event for event in events if event["event"] == "epoch covered"]) == 1


def test_a_run_without_many_is_not(tmp_path: Path) -> None:
    assert gloo.run(1, train_worker, recipe(tmp_path, epochs=1)) == [0]
    assert not [event for event in read_events(tmp_path / "run") if event["event"] == "false negatives"]
