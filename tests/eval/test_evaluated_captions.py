"""An evaluation with captions of another file: known by it wherever figures stand, and checked before it begins."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import fake_encoder
import numpy as np
import pytest
import torch
from column_folders import add_column
from evaluated_runs import config_of, write_run
from rich.console import Console
from shard_sets import make_shard_set

import eval.evaluate
import eval.evaluating
from core.errors import ConfigError, DataError
from core.manifest import OF_CLASSES, load_manifest, save_manifest
from core.shard_set import ShardSet
from eval.early import expect_measurable
from eval.encoder import load_encoder
from eval.evaluate import evaluate
from eval.export.model_card import model_card
from eval.features import load_features, shards_stamp

QUIET = Console(quiet=True)


@pytest.fixture
def run_dir(tmp_path):
    write_run(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def shards(tmp_path):
    return make_shard_set(tmp_path / "val", 12, split="val")


@pytest.fixture
def embedded(monkeypatch):
    monkeypatch.setattr(eval.evaluating, "text_embedder", lambda spec, choice, device: fake_encoder.expected)


def test_figures_of_another_captions_file_are_not_taken_for_these(run_dir, shards, tmp_path, embedded):
    def of_captions(name, caption, **more):
        lines = [{"image_id": str(image), "captions": [caption]} for image in range(12)]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        out = tmp_path / Path(name).stem
        return evaluate(config_of(run_dir, shards, out, captions=tmp_path / name, **more), QUIET), out

    first, out = of_captions("a.jsonl", "a dog")
    with pytest.raises(DataError, match=r"has captions of a.jsonl \(sha256 \w+\), this evaluation of b.jsonl"):
        of_captions("b.jsonl", "a cat", baseline=out)
    with pytest.raises(DataError, match=r"this evaluation of the shards"):
        evaluate(config_of(run_dir, shards, tmp_path / "c", baseline=out), QUIET)
    assert "against_baseline" in of_captions("a.jsonl", "a dog", baseline=out)[0]
    fingerprint = ShardSet.open(shards).fingerprint
    load_features(out / "features.safetensors", shards=shards_stamp(fingerprint, first["captions_from"]))
    for other in ("", "b.jsonl (sha256 0)"):
        with pytest.raises(DataError, match="its shards is"):
            load_features(out / "features.safetensors", shards=shards_stamp(fingerprint, other))
    shutil.copy(out / "results.json", run_dir / "results.json")
    card = model_card(load_encoder(run_dir, torch.device("cpu")), "x", "")
    (run_dir / "results.json").unlink()
    assert first["captions_from"].startswith("a.jsonl (sha256 ") and f"captions of {first['captions_from']}" in card


def test_what_of_captions_cannot_go_well_is_said_before_anything_is_loaded(run_dir, shards, tmp_path):
    config = config_of(run_dir, shards, tmp_path / "out")
    expect_measurable(config)
    with pytest.raises(ConfigError, match=r"captions: .*none.jsonl is missing"):
        expect_measurable(replace(config, captions=tmp_path / "none.jsonl"))
    (tmp_path / "own.jsonl").write_text('{"image_id": "99", "captions": ["x"]}\n')
    with pytest.raises(DataError, match=r"own.jsonl, line 1: no sample of .* has image_id '99'"):
        expect_measurable(replace(config, captions=tmp_path / "own.jsonl"))
    with pytest.raises(ConfigError, match="protocol 'coco-5k' counts own captions alone"):
        replace(config, protocols=("full", "coco-5k"), equal_captions=True)
    coco = replace(config, protocols=("full", "coco-1k-5fold"))
    expect_measurable(coco)
    add_column(shards, "labels", np.zeros(12, "<i4"), classes=("cat",), **{"from": "json"})
    save_manifest(replace(load_manifest(shards), classes=("cat",), captions=OF_CLASSES), shards)
    with pytest.raises(ConfigError, match=r"'coco-1k-5fold' counts own captions alone, but those of .*val were made"):
        expect_measurable(coco)
