"""What another version wrote is read with defaults, or refused in one sentence; unknown fields are passed over."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_sets import make_shard_set
from signed_files import Place, body_of, sign_manifest, with_an_unknown_field, without_each_field

from core.columns import ColumnFile, ColumnHead, head_bytes, load_head
from core.errors import DamagedError, ManifestError, ShardclipError
from core.fields import fill
from core.manifest import (
    ImageSpec,
    Manifest,
    ShardEntry,
    SidecarEntry,
    TextEncoderSpec,
    load_manifest,
    save_manifest,
)
from core.shard_index import decode_index
from core.shard_set import ShardSet

MANIFEST = Manifest(
    split="train",
    num_samples=5,
    num_captions=9,
    image=ImageSpec(224, "pad", "mixed", 80),
    text_encoder=TextEncoderSpec("minilm", "1", 384, "ab" * 32),
    classes=("cat", "dog"),
    shards=(
        ShardEntry("a.tar", 3, 7, 1024, "00" * 32, "11" * 32, SidecarEntry("a.emb", 9, "22" * 32), "a.1a2b3c4d.idx"),
        ShardEntry("b.tar", 2, 2, 1024, "33" * 32, "44" * 32),
    ),
    num_inputs=7,
    skipped={"missing_image": 2},
    build_fingerprint="b",
    fingerprint="f",
    captions="given",
    num_cut_captions=3,
)
FIRST = MANIFEST.shards[0]
DEFAULTS: dict[Place, Manifest] = {  # what is read without this field; without any other the manifest is refused
    ("text_encoder",): replace(MANIFEST, text_encoder=None),
    ("classes",): replace(MANIFEST, classes=()),
    ("build_fingerprint",): replace(MANIFEST, build_fingerprint="f", fingerprint=""),  # as it was called before
    ("fingerprint",): replace(MANIFEST, fingerprint=""),
    ("captions",): replace(MANIFEST, captions=""),
    ("num_cut_captions",): replace(MANIFEST, num_cut_captions=0),
    ("format_version",): MANIFEST,
    ("image", "fit"): replace(MANIFEST, image=ImageSpec(224, "crop", "mixed", 80)),
    ("image", "codec"): replace(MANIFEST, image=ImageSpec(224, "pad", "jpeg", 80)),
    ("image", "quality"): replace(MANIFEST, image=ImageSpec(224, "pad", "mixed", 95)),
    ("shards", 0, "embeddings"): replace(MANIFEST, shards=(replace(FIRST, embeddings=None), MANIFEST.shards[1])),
    ("shards", 0, "index"): replace(MANIFEST, shards=(replace(FIRST, index=""), MANIFEST.shards[1])),
    ("shards", 1, "embeddings"): MANIFEST,
    ("shards", 1, "index"): MANIFEST,
}
HEAD = ColumnHead(
    name="labels",
    kind="labels",
    per="sample",
    dtype="<i4",
    shape=(),
    origin={"file": "a.csv"},
    fingerprint="f",
    classes=("cat", "dog"),
    files=(ColumnFile("a.npy", 100, "00" * 32, "11"), ColumnFile("b.npy", 99, "22" * 32, "33")),
)


def outcome(load: Callable[[], Any], path: Path) -> Any:
    """What is read, or None for a refusal in a sentence that begins with the file; any other error is raised."""
    try:
        return load()
    except ShardclipError as error:
        said = str(error)
        assert said.startswith(str(path)) and said.count("\n") == 0 and said.count(". ") == 1 and said[-1] == ".", said
        return None


def test_a_manifest_without_a_field_has_its_default_or_is_refused(tmp_path: Path) -> None:
    save_manifest(MANIFEST, str(tmp_path))
    path = tmp_path / "manifest.json"
    places = []
    for place, body in without_each_field(body_of(path, "manifest_sha256")):
        path.write_bytes(sign_manifest(body))
        assert outcome(lambda: load_manifest(str(tmp_path)), path) == DEFAULTS.get(place), place
        places.append(place)
    assert set(DEFAULTS) < set(places) and ("skipped",) in places and ("shards", 0, "embeddings", "bytes") in places


def test_unknown_fields_of_a_manifest_are_passed_over(tmp_path: Path) -> None:
    save_manifest(MANIFEST, str(tmp_path))
    path = tmp_path / "manifest.json"
    for place, body in with_an_unknown_field(body_of(path, "manifest_sha256")):
        path.write_bytes(sign_manifest(body))
        expected = None if place == ("skipped",) else MANIFEST  # there a name is a reason, and its value a count
        assert outcome(lambda: load_manifest(str(tmp_path)), path) == expected, place


@pytest.mark.parametrize("value", [None, [], {}, "text", 3])
def test_a_manifest_with_a_field_of_another_kind_is_read_or_refused(tmp_path: Path, value: Any) -> None:
    save_manifest(MANIFEST, str(tmp_path))
    path = tmp_path / "manifest.json"
    whole = body_of(path, "manifest_sha256")
    for name in set(whole) - {"format_version"}:
        path.write_bytes(sign_manifest({**whole, name: value}))
        outcome(lambda: load_manifest(str(tmp_path)), path)


def test_a_missing_field_is_named_with_a_remedy(tmp_path: Path) -> None:
    save_manifest(MANIFEST, str(tmp_path))
    body = body_of(tmp_path / "manifest.json", "manifest_sha256")
    del body["shards"][1]["sha256"]
    (tmp_path / "manifest.json").write_bytes(sign_manifest(body))
    with pytest.raises(ManifestError, match="has no 'sha256', so it was written by another version. Update shardclip"):
        load_manifest(str(tmp_path))


def test_a_column_without_a_field_has_its_default_or_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "columns/labels/column.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(head_bytes(HEAD))
    assert load_head(str(tmp_path), "labels") == HEAD
    defaults = {
        ("classes",): replace(HEAD, classes=()),
        ("files",): replace(HEAD, files=()),
        ("format_version",): HEAD,
        ("origin", "file"): replace(HEAD, origin={}),
    }
    body = body_of(path, "column_sha256")
    places = [place for place, _ in without_each_field(body)]
    assert set(defaults) < set(places) and ("files", 1, "xxh3") in places
    for place, changed in without_each_field(body):
        if place == ("figures",):
            continue  # for people, and empty here
        path.write_bytes(sign_manifest(changed, "column_sha256"))
        assert outcome(lambda: load_head(str(tmp_path), "labels"), path) == defaults.get(place), place
    for place, changed in with_an_unknown_field(body):
        path.write_bytes(sign_manifest(changed, "column_sha256"))
        found = outcome(lambda: load_head(str(tmp_path), "labels"), path)
        assert found is not None and (place in (("origin",), ("figures",)) or found == HEAD), place


def test_a_column_of_a_newer_format_or_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "columns/labels/column.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(sign_manifest({**body_of_head(), "format_version": 2}, "column_sha256"))
    with pytest.raises(ManifestError, match="format 2 is newer than 1. Update shardclip"):
        load_head(str(tmp_path), "labels")
    for data in (head_bytes(HEAD).replace(b"cat", b"cot"), head_bytes(HEAD)[:-9], b"[]", b"3"):
        path.write_bytes(data)
        with pytest.raises(ManifestError, match="its own hash does not fit: it was altered"):
            load_head(str(tmp_path), "labels")


def body_of_head() -> dict[str, Any]:
    return {key: value for key, value in json.loads(head_bytes(HEAD)).items() if key != "column_sha256"}


def test_a_text_column_that_does_not_say_its_encoder_is_refused() -> None:
    spec = TextEncoderSpec("minilm", "1", 384, "ab")
    origin = {"name": "minilm", "revision": "1", "embed_dim": 384, "weights_sha256": "ab", "of_tomorrow": 1}
    assert replace(HEAD, origin={"text_encoder": origin}).text_encoder == spec
    for encoder in ({"name": "minilm"}, None, "minilm"):
        with pytest.raises(ManifestError, match="column 'labels': has .*written by another version"):
            _ = replace(HEAD, origin={"text_encoder": encoder}).text_encoder


def header_of(data: bytes) -> dict[str, Any]:
    """The JSON in the head of an index."""
    (length,) = struct.unpack("<I", data[8:12])
    return dict(json.loads(data[12 : 12 + length]))


def with_header(data: bytes, changed: dict[str, Any]) -> bytes:
    """The index with another JSON header, padded as indexes are."""
    end = 12 + struct.unpack("<I", data[8:12])[0]
    header = json.dumps(changed).encode()
    lead = data[:8] + struct.pack("<I", len(header)) + header
    return lead + bytes(-len(lead) % 16) + data[end + -end % 16 :]


def test_an_index_of_another_version_is_read_or_refused(tmp_path: Path) -> None:
    make_shard_set(tmp_path, 7)
    data = (tmp_path / "train-00000.idx").read_bytes()
    whole, header = decode_index(data, "a.idx"), header_of(data)
    more = decode_index(with_header(data, {**header, "of_tomorrow": 1}), "a.idx")
    assert more.members == whole.members and np.array_equal(more.records, whole.records)
    assert with_header(data, header) == data
    others = [{"num_samples": 7}, {"members": header["members"]}]
    others += [{**header, "members": m} for m in ([["image"]], [["image", "a", "b"]], None, 3, [3])]
    for other in others:
        with pytest.raises(DamagedError, match="a.idx: no shard index, or cut short. Restore it"):
            decode_index(with_header(data, other), "a.idx")
    with pytest.raises(DamagedError, match="a.idx: an index of a newer format. Update shardclip."):
        decode_index(b"SCLIPIX2" + data[8:], "a.idx")


def test_an_older_set_is_read_as_before(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path, 25)
    before = ShardSet.open(url)
    body = body_of(tmp_path / "manifest.json", "manifest_sha256")
    body["fingerprint"] = body.pop("build_fingerprint")
    for entry in body["shards"]:
        del entry["index"], entry["embeddings"]
    (tmp_path / "manifest.json").write_bytes(sign_manifest(body))
    after = ShardSet.open(url)
    assert after.fingerprint == before.fingerprint and after.manifests == before.manifests
    assert bytes(after.member(24, "image")) == bytes(before.member(24, "image"))


def test_filling_says_what_is_missing_and_where() -> None:
    assert fill(ImageSpec, {"size": 3, "other": 1}, "here", ManifestError, "Mend it.") == ImageSpec(3)
    with pytest.raises(DamagedError, match=r"^here: has no 'size', so it was written by another version. Mend it.$"):
        fill(ImageSpec, {"fit": "pad"}, "here", DamagedError, "Mend it.")
    with pytest.raises(DamagedError, match=r"^here: has None for a ImageSpec"):
        fill(ImageSpec, None, "here", DamagedError, "Mend it.")
