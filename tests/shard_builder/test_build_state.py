"""Notes of a build that another version wrote: read with defaults, made again, or refused in one sentence."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from signed_files import body_of, sign_build, with_an_unknown_field, without_each_field

from core.errors import ManifestError
from core.manifest import ShardEntry
from core.storage import publish_bytes, sha256_of
from shard_builder.build_state import finished_results, load_build, save_build, save_result
from shard_builder.layout import ShardPlan
from shard_builder.records import Skip
from shard_builder.writer import ShardResult

PLAN = ShardPlan("train-00000.tar", 0, ())
INPUTS = {PLAN.name: "now"}
RECIPE = {"layout": 2, "settings": {"seed": 0}}


@pytest.fixture
def result(tmp_path: Path) -> ShardResult:
    """A finished shard, its files and its note."""
    for name in ("train-00000.tar", "train-00000.idx"):
        publish_bytes(name.encode(), tmp_path / name)
    sums = [sha256_of(tmp_path / name) for name in ("train-00000.tar", "train-00000.idx")]
    entry = ShardEntry("train-00000.tar", 3, 5, len("train-00000.tar"), *sums)
    result = ShardResult(entry, (Skip("x", "coco", "truncated", "/x.jpg"),), 1000, 2)
    save_result(str(tmp_path), PLAN.name, result)
    return result


def test_a_note_without_a_field_has_its_default_or_its_shard_is_made_again(tmp_path: Path, result: ShardResult) -> None:
    note = tmp_path / ".build/train-00000.tar.json"
    whole = json.loads(note.read_text())
    assert whole == {**asdict(result), "skipped": [asdict(result.skipped[0])]}
    assert finished_results(str(tmp_path), [PLAN], INPUTS) == {PLAN.name: result}
    optional = {("entry", "embeddings"), ("entry", "index"), ("inputs",)}
    for place, changed in without_each_field(whole):
        note.write_text(json.dumps(changed))
        expected = {PLAN.name: result} if place in optional else {}
        assert finished_results(str(tmp_path), [PLAN], INPUTS) == expected, place
    for _, changed in with_an_unknown_field(whole):
        note.write_text(json.dumps(changed))
        assert finished_results(str(tmp_path), [PLAN], INPUTS) == {PLAN.name: result}
    for text in ("", "{", "[]", "3", "null"):
        note.write_text(text)
        assert finished_results(str(tmp_path), [PLAN], INPUTS) == {}


def test_a_note_of_a_shard_without_samples_is_believed(tmp_path: Path) -> None:
    nothing = ShardResult(None, (Skip("x", "coco", "truncated", "/x.jpg"),), 1000, 0)
    save_result(str(tmp_path), PLAN.name, nothing)
    assert finished_results(str(tmp_path), [PLAN], INPUTS) == {PLAN.name: nothing}


def test_a_build_json_of_another_version_is_read_or_refused(tmp_path: Path) -> None:
    files = {"rejected.jsonl": "00"}
    save_build(str(tmp_path), RECIPE, files)
    path = tmp_path / "build.json"
    body = body_of(path, "sha256")
    assert load_build(str(tmp_path))["files"] == files
    for place, changed in without_each_field(body):
        path.write_bytes(sign_build(changed))
        if len(place) == 1:
            with pytest.raises(ManifestError, match="build.json: is missing or cannot be read. Restore it"):
                load_build(str(tmp_path))
        else:
            assert load_build(str(tmp_path))["recipe"] == changed["recipe"]
    for _, changed in with_an_unknown_field(body):
        path.write_bytes(sign_build(changed))
        assert load_build(str(tmp_path))["recipe"] == changed["recipe"]
    path.write_bytes(sign_build(body).replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(ManifestError, match="its own hash does not fit: it was altered"):
        load_build(str(tmp_path))
