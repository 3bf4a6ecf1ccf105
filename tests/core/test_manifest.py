"""A manifest is believed only if it is whole; any flipped bit in it is found."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from signed_files import sign_manifest

from core.errors import ManifestError, StorageError
from core.manifest import MANIFEST_NAME, ImageSpec, Manifest, ShardEntry, TextEncoderSpec, load_manifest, save_manifest

MANIFEST = Manifest(
    split="train",
    num_samples=3,
    num_captions=7,
    image=ImageSpec(224),
    text_encoder=TextEncoderSpec("minilm", "1", 384, "ab" * 32),
    classes=("cat", "dog"),
    shards=(ShardEntry("train-00000.tar", 3, 7, 1024, "00" * 32, "11" * 32),),
    num_inputs=5,
    skipped={"missing_image": 2},
    build_fingerprint="b",
    fingerprint="f",
)


def test_a_manifest_reads_back_equal(tmp_path: Path) -> None:
    save_manifest(MANIFEST, str(tmp_path))
    assert load_manifest(str(tmp_path)) == MANIFEST


def test_the_bytes_of_a_manifest_stay_what_they_were(tmp_path: Path) -> None:
    """Compared byte for byte when read: manifests that earlier versions wrote must fit."""
    manifest = replace(MANIFEST, classes=("\u00e9lan", "dog"))
    save_manifest(manifest, str(tmp_path))
    body = json.loads(json.dumps(asdict(manifest)))
    assert (tmp_path / MANIFEST_NAME).read_bytes() == sign_manifest(body) and "\u00e9".encode() in sign_manifest(body)


def test_a_missing_manifest_means_no_set(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no shard set is there. Build one"):
        load_manifest(str(tmp_path))


def test_every_flip_and_every_truncation_is_found(tmp_path: Path) -> None:
    save_manifest(MANIFEST, str(tmp_path))
    path = tmp_path / MANIFEST_NAME
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            altered = load_manifest(str(tmp_path))
        except ManifestError:
            continue
        assert altered == MANIFEST  # white space between values is the only thing that carries nothing
    for end in range(0, len(whole) - 2, 37):
        path.write_bytes(whole[:end])
        with pytest.raises(ManifestError, match="truncated or no manifest"):
            load_manifest(str(tmp_path))


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({"format_version": 99, "manifest_sha256": ""}))
    with pytest.raises(ManifestError, match="format 99 is newer than 1"):
        load_manifest(str(tmp_path))


def test_a_manifest_that_does_not_add_up_or_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.loads(json.dumps(asdict(MANIFEST)))
    for change, said in (({"num_samples": 4}, "shards do not add up"), ({"num_inputs": 6}, "skips do not add up")):
        (tmp_path / MANIFEST_NAME).write_bytes(sign_manifest({**body, **change}))
        with pytest.raises(
            ManifestError, match=rf"manifest\.json: does not hang together \({said}\), so it was written by"
        ):
            load_manifest(str(tmp_path))

    def fails(path: str) -> bytes:
        raise StorageError(f"{path}: the disk does not answer.")

    monkeypatch.setattr("core.manifest.read_bytes", fails)
    with pytest.raises(ManifestError, match=r"manifest\.json: the disk does not answer"):
        load_manifest(str(tmp_path))
