"""Two hashes: the build's says what decided the bytes, the samples' says what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_encoder import FakeEncoder
from interrupted_builds import interrupted_after_a_shard
from rich.console import Console
from signed_files import body_of, sign_build, sign_manifest

from core import image as imaging
from core.config import Choice
from core.errors import ManifestError
from core.manifest import Manifest, TextEncoderSpec, load_manifest
from core.shard_set import ShardSet
from core.text_encoders import TEXT_ENCODERS
from shard_builder.build import build_shards
from shard_builder.config import BuildConfig, ImageConfig
from shard_builder.fingerprint import UNNAMED_CONSTANTS, fingerprint_of, fingerprints_of, named_in_full, recipe_of
from shard_builder.records import Record, Skip
from shard_builder.verify import verify

MakeConfig = Callable[..., BuildConfig]
SPEC = TextEncoderSpec("minilm", "1", 384, "ab")
OTHER_CONSTANTS = [  # of core.image: name there, another value, what a refusal says
    ("FILTER", "LANCZOS", "constants.filter: BICUBIC -> LANCZOS"),
    ("DRAFT_FACTOR", 3, "constants.draft_factor: 2 -> 3"),
    ("PAD_COLOUR", (0, 0, 0), r"constants.pad_colour: \[127, 127, 127\] -> \[0, 0, 0\]"),
    ("MIN_SIDE", 9, "constants.min_side: 8 -> 9"),
    ("JPEG_SUBSAMPLING", "4:4:4", "constants.jpeg_subsampling: 4:2:0 -> 4:4:4"),
    ("JPEG_OPTIMIZE", True, "constants.jpeg_optimize: False -> True"),
    ("JPEG_PROGRESSIVE", True, "constants.jpeg_progressive: False -> True"),
]


def records(count: int) -> list[Record]:
    return [Record(f"{n}.v2.jpg", "coco", f"/photos/{n}.jpg", (f"caption {n}",)) for n in range(count)]


def make_recipe(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "settings": {"seed": 0, "image": {"size": 224}},
        "records": records(3),
        "skipped": [Skip("x", "coco", "missing_image", "/photos/x.jpg")],
        "image_bytes": [10, 20, 30],
        "imaging_library": "pillow 13",
        "text_encoder": SPEC,
    }
    return recipe_of(**{**given, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"seed": 1, "image": {"size": 224}}},
        {"settings": {"seed": 0, "image": {"size": 225}}},
        {"records": [*records(2), replace(records(3)[2], captions=("another",))]},
        {"records": [*records(2), replace(records(3)[2], captions=("caption 2", "caption 2"))]},
        {"records": [*records(2), replace(records(3)[2], label="dog")]},
        {"skipped": []},
        {"image_bytes": [10, 21, 29]},
        {"imaging_library": "pillow-simd 12"},
        {"text_encoder": replace(SPEC, weights_sha256="cd")},
    ],
)
def test_whatever_changes_the_bytes_changes_the_fingerprint(changes: dict[str, Any]) -> None:
    assert fingerprint_of(make_recipe(**changes)) != fingerprint_of(make_recipe())


def test_the_fingerprint_stays_what_it_was() -> None:
    """Sets that were built are known by these numbers: they may change only with `LAYOUT`."""
    captions = ("un caf\u00e9", "two")
    own = [Record("1", "coco", "/photos/1.jpg", captions, "dog"), Record("2", "coco", "/photos/2.jpg", ("one",))]
    skipped = [Skip("y", "coco", "undecodable", "/y.jpg"), Skip("x", "coco", "missing_image", "/x.jpg")]
    recipe = make_recipe(records=own, skipped=skipped, image_bytes=[10, 20])
    counted = {"images": 2, "captions": 3, "image_bytes": 30, "skipped": 2}
    lines = [
        '["coco", "1", 10, "dog", "un caf\\u00e9", "two"]',
        '["coco", "2", 20, null, "one"]',
        '["coco", "x", "missing_image"]',
        '["coco", "y", "undecodable"]',
    ]
    inputs = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    assert recipe["inputs"] == {**counted, "sha256": inputs} and recipe["layout"] == 2
    words = json.dumps(recipe, sort_keys=True) + "\n"
    assert fingerprint_of(recipe) == hashlib.sha256(words.encode()).hexdigest()


def test_moved_data_keep_their_fingerprint() -> None:
    moved = [replace(record, image=record.image.replace("/photos", "/elsewhere")) for record in records(3)]
    skipped = [Skip("x", "coco", "missing_image", "/elsewhere/x.jpg")]
    assert make_recipe(records=moved, skipped=skipped) == make_recipe()


@pytest.mark.parametrize(("name", "value", "said"), OTHER_CONSTANTS)
def test_another_constant_of_the_encoder_is_another_recipe(
    name: str, value: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_recipe()
    unnamed = {key: value for key, value in before.items() if key != "constants"}
    assert fingerprints_of(before) == {fingerprint_of(before), fingerprint_of(unnamed)}
    assert named_in_full(unnamed) == named_in_full(before) == before
    monkeypatch.setattr(imaging, name, value)
    assert not fingerprints_of(make_recipe()) & fingerprints_of(before)
    assert fingerprints_of(make_recipe()) == {fingerprint_of(make_recipe())}
    assert named_in_full(unnamed) != make_recipe()


def test_every_constant_has_a_name_in_the_recipe_and_none_has_changed_yet() -> None:
    assert imaging.constants() == UNNAMED_CONSTANTS
    assert len(OTHER_CONSTANTS) == len(UNNAMED_CONSTANTS)
    assert json.loads(json.dumps(make_recipe())) == make_recipe()  # a note of it, read back, must compare equal


@pytest.mark.parametrize("finished", [True, False])
def test_another_filter_is_refused_by_name(
    make_config: MakeConfig, console: Console, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    config = make_config()
    if finished:
        build_shards(config, console)
    else:
        begin(config, console)
    for of_before in (False, True):
        if of_before:
            make_older(Path(config.out))
        for name, value, said in (OTHER_CONSTANTS[0], OTHER_CONSTANTS[2]):
            with monkeypatch.context() as patch, pytest.raises(ManifestError, match=said):
                patch.setattr(imaging, name, value)
                build_shards(config, console)


def begin(config: BuildConfig, console: Console) -> None:
    """Build until the first shard is noted."""
    with interrupted_after_a_shard():
        build_shards(config, console)


def make_older(folder: Path) -> None:
    """Turn a set, or an unfinished build, into one of before recipes named constants and samples had a hash."""
    if (folder / ".build").exists():
        note = folder / ".build/recipe.json"
        note.write_text(json.dumps({k: v for k, v in json.loads(note.read_text()).items() if k != "constants"}))
        return
    build = body_of(folder / "build.json", "sha256")
    recipe = {key: value for key, value in build["recipe"].items() if key != "constants"}
    (folder / "build.json").write_bytes(sign_build({**build, "recipe": recipe}))
    body = body_of(folder / "manifest.json", "manifest_sha256")
    del body["build_fingerprint"]
    body["fingerprint"] = fingerprint_of(recipe)
    for entry in body["shards"]:
        del entry["index"], entry["embeddings"]
    (folder / "manifest.json").write_bytes(sign_manifest(body))


def test_an_older_set_is_already_built_and_has_the_same_samples(make_config: MakeConfig, console: Console) -> None:
    config = make_config()
    manifest = build_shards(config, console)
    make_older(Path(config.out))
    assert load_manifest(config.out).fingerprint == ""
    assert ShardSet.open(config.out).fingerprint == manifest.fingerprint
    before = (Path(config.out) / "manifest.json").read_bytes()
    assert replace(build_shards(config, console), build_fingerprint="", fingerprint="") == replace(
        manifest, build_fingerprint="", fingerprint=""
    )
    assert "already built" in console.file.getvalue()  # type: ignore[attr-defined]
    assert (Path(config.out) / "manifest.json").read_bytes() == before
    assert verify(config.out, workers=1, console=console) == []


def test_an_older_unfinished_build_goes_on(make_config: MakeConfig, console: Console) -> None:
    config = make_config()
    begin(config, console)
    make_older(Path(config.out))
    build_shards(config, console)
    assert "1 of 4 shards are finished" in console.file.getvalue()  # type: ignore[attr-defined]


def built(make_config: MakeConfig, console: Console, name: str, **settings: Any) -> Manifest:
    manifest = build_shards(make_config(name=name, **settings), console)
    assert manifest == load_manifest(make_config(name=name).out)
    assert manifest.fingerprint == ShardSet.open(make_config(name=name).out).fingerprint
    return manifest


def test_the_samples_fingerprint_is_of_samples_and_their_order_alone(
    make_config: MakeConfig, console: Console, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEXT_ENCODERS, "fake", FakeEncoder)
    fake = Choice("fake")
    first = built(make_config, console, "first", text_encoder=fake)
    same = [
        built(make_config, console, "encoder"),
        built(make_config, console, "limit", text_encoder=fake, image=ImageConfig(size=32, max_pixels=99_999_999)),
    ]
    others = [
        built(make_config, console, "order", text_encoder=fake, seed=1),
        built(make_config, console, "cut", text_encoder=fake, samples_per_shard=10),
        built(make_config, console, "size", text_encoder=fake, image=ImageConfig(size=33)),
    ]
    lines = [json.loads(line) for line in photos.read_text().splitlines()]
    lines[1]["captions"][1] += "!"  # not the first caption, which the txt has
    photos.write_text("".join(json.dumps(line) + "\n" for line in lines))
    others.append(built(make_config, console, "caption", text_encoder=fake))
    assert {manifest.fingerprint for manifest in same} == {first.fingerprint}
    assert len({manifest.fingerprint for manifest in [first, *others]}) == 5
    assert len({manifest.build_fingerprint for manifest in [first, *same, *others]}) == 7
