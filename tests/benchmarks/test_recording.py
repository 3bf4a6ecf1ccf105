"""Recordings of commits: those before named parts compare with those after, and what differs is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import recording

BEFORE = {
    "model: image_encoder.head.1.weight": "a",
    "model: logit_scale": "b",
    "ema: image_encoder.head.1.weight": "c",
    "ema: logit_scale": "d",
    "optimizer: state.0.exp_avg": "e",
}
AFTER = {
    "encoder: image_encoder.head.1.weight": "a",
    "objective: logit_scale": "b",
    "ema: encoder.image_encoder.head.1.weight": "c",
    "ema: learned.logit_scale": "d",
    "optimizer: state.0.exp_avg": "e",
}


def compare(folder: Path, before: Any, after: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    for name, tensors in {"before": before, "after": after}.items():
        recorded = {"commit": name, "demo": {"losses": {"1": "2.5"}, "tensors": tensors}}
        (folder / name).write_text(json.dumps(recorded))
    monkeypatch.setattr(sys, "argv", ["recording", "--compare", str(folder / "before"), str(folder / "after")])
    with pytest.raises(SystemExit) as left:
        recording.main()
    return int(left.value.code or 0)


def test_tensors_are_the_same_under_their_names_before_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for before, after in ((BEFORE, AFTER), (AFTER, AFTER), (BEFORE, BEFORE)):
        assert compare(tmp_path, before, after, monkeypatch) == 0
        assert "the same to the bit" in capsys.readouterr().out


@pytest.mark.parametrize("name", AFTER)
def test_a_tensor_that_differs_is_named(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path, BEFORE, {**AFTER, name: "z"}, monkeypatch) == 1
    assert f"/demo/tensors/{name}" in capsys.readouterr().out
    assert compare(tmp_path, BEFORE, {other: v for other, v in AFTER.items() if other != name}, monkeypatch) == 1
