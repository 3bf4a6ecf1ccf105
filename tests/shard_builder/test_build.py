"""A build: equal bytes whatever the way, nothing lost unsaid, nothing begun over another set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photo_folders import folder_bytes, picture, write_photos
from rich.console import Console

from core.config import Choice, load_config
from core.errors import ConfigError, DataError, ManifestError, StorageError
from core.locks import lock
from core.manifest import Manifest, load_manifest
from core.shard_set import ShardSet
from shard_builder import build_state, writer
from shard_builder.build import build_shards
from shard_builder.config import BuildConfig, ImageConfig
from shard_builder.readers import READERS
from shard_builder.records import ReadResult
from shard_builder.verify import verify

MakeConfig = Callable[..., BuildConfig]


def test_the_set_holds_every_input_once(make_config: MakeConfig, console: Console, photos: Path) -> None:
    config = make_config(workers=2)
    manifest = build_shards(config, console)
    shard_set = ShardSet.open(config.out)
    lines = [json.loads(line) for line in photos.read_text().splitlines()]
    assert (manifest.num_samples, manifest.num_inputs, manifest.skipped) == (30, 30, {})
    assert [entry.num_samples for entry in manifest.shards] == [8, 8, 8, 6]
    assert manifest.classes == ("boat", "dog", "girl", "hill", "train")
    found = {shard_set.info(n)["image_id"]: shard_set.info(n)["captions"] for n in range(30)}
    assert found == {line["image"]: line["captions"] for line in lines}
    assert [shard_set.key(n) for n in range(30)] == [f"{n:09d}" for n in range(30)]
    assert load_manifest(config.out) == manifest


def test_embeddings_belong_to_their_captions(make_config: MakeConfig, console: Console) -> None:
    config = make_config()
    build_shards(config, console)
    shard_set = ShardSet.open(config.out)
    of_caption: dict[str, np.ndarray] = {}
    for sample in range(len(shard_set)):
        captions, embeddings = shard_set.captions(sample), shard_set.embeddings(sample)
        assert embeddings.shape == (len(captions), shard_set.embed_dim)
        for caption, embedding in zip(captions, embeddings):
            np.testing.assert_array_equal(of_caption.setdefault(caption, embedding), embedding)
    assert len({embedding.tobytes() for embedding in of_caption.values()}) == len(of_caption)


def test_the_finished_folder_holds_what_the_manifest_names_and_no_litter(
    make_config: MakeConfig, console: Console
) -> None:
    config = make_config()
    build_shards(config, console)
    shards = [f"train-{n:05d}.{extension}" for n in range(4) for extension in ("idx", "tar")]
    extras = ["build.json", "contact_sheet.jpg", "manifest.json", "rejected.jsonl"]
    labels = [f"columns/labels/{name}" for name in ("column.json", *(f"train-{n:05d}.npy" for n in range(4)))]
    assert sorted(folder_bytes(config.out)) == sorted([*extras, *shards, *labels])
    assert [p.name for p in Path(config.out).iterdir() if p.is_dir()] == ["columns"]
    assert verify(config.out, workers=1, console=console) == []


@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_workers_and_order_of_arrival_leave_no_trace(
    make_config: MakeConfig, console: Console, monkeypatch: pytest.MonkeyPatch, codec: Any
) -> None:
    image = ImageConfig(size=32, codec=codec)
    build_shards(make_config(name="one", image=image), console)
    for workers in (2, 3):
        shuffle_reader(monkeypatch, seed=workers)
        build_shards(make_config(name=f"out{workers}", image=image, workers=workers), console)
        assert folder_bytes(make_config(name=f"out{workers}").out) == folder_bytes(make_config(name="one").out)


def shuffle_reader(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    read = READERS["jsonl"]

    def shuffled(split: str, *, file: str) -> ReadResult:
        result = read(split, file=file)
        order = np.random.default_rng(seed).permutation(len(result.records))
        return replace(result, records=tuple(result.records[i] for i in order), skipped=result.skipped[::-1])

    monkeypatch.setitem(READERS, "jsonl", shuffled)


def test_settings_change_what_they_should(make_config: MakeConfig, console: Console) -> None:
    build_shards(make_config(name="a"), console)
    build_shards(make_config(name="b", seed=1), console)
    a, b = (ShardSet.open(make_config(name=name).out) for name in "ab")
    assert a.fingerprint != b.fingerprint
    assert [a.info(n)["image_id"] for n in range(30)] != [b.info(n)["image_id"] for n in range(30)]


def spoil(photos: Path) -> None:
    """Of 30 photos: 2 missing, 1 no image, 1 truncated."""
    for name in ("003.jpg", "017.jpg"):
        (photos.parent / name).unlink()
    (photos.parent / "005.jpg").write_bytes(b"no image at all")
    (photos.parent / "006.jpg").write_bytes(picture(6, (300, 300))[:3000])


def test_skips_are_counted_listed_and_add_up(make_config: MakeConfig, console: Console, photos: Path) -> None:
    spoil(photos)
    config = make_config(max_skipped=0.2, workers=2)
    manifest = build_shards(config, console)
    assert manifest.skipped == {"missing_image": 2, "truncated": 1, "unreadable": 1}
    assert (manifest.num_samples, manifest.num_inputs) == (26, 30)
    rejected = [json.loads(line) for line in (Path(config.out) / "rejected.jsonl").read_text().splitlines()]
    assert [(r["image_id"], r["reason"]) for r in rejected] == [
        ("003.jpg", "missing_image"),
        ("005.jpg", "unreadable"),
        ("006.jpg", "truncated"),
        ("017.jpg", "missing_image"),
    ]
    assert "2 missing_image" in console.file.getvalue()  # type: ignore[attr-defined]
    build_shards(replace(config, out=config.out + "2", workers=1), console)
    assert folder_bytes(config.out) == folder_bytes(config.out + "2")


def test_too_many_missing_images_end_the_build_before_the_heavy_work(
    make_config: MakeConfig, console: Console, photos: Path
) -> None:
    spoil(photos)
    config = make_config(max_skipped=0.05)
    with pytest.raises(DataError, match=r"2 of 30 inputs cannot be used \(2 missing_image\): 6.7%, .*max_skipped=0.07"):
        build_shards(config, console)
    assert not list(Path(config.out).glob("*.tar"))
    assert len((Path(config.out) / "rejected.jsonl").read_text().splitlines()) == 2


def test_too_many_undecodable_images_end_the_build_and_a_higher_limit_continues_it(
    make_config: MakeConfig, console: Console, photos: Path
) -> None:
    spoil(photos)
    config = make_config(max_skipped=0.1)
    with pytest.raises(DataError, match=r"4 of 30 inputs cannot be used \(2 missing_image, 1 truncated, 1 unreadable"):
        build_shards(config, console)
    with pytest.raises(ManifestError, match="no shard set is there"):
        load_manifest(config.out)
    build_shards(replace(config, max_skipped=0.2), console)
    build_shards(replace(config, max_skipped=0.2, out=config.out + "2"), console)
    assert folder_bytes(config.out) == folder_bytes(config.out + "2")


def test_a_source_without_one_good_image_is_an_error(make_config: MakeConfig, console: Console, photos: Path) -> None:
    for image in photos.parent.glob("*.jpg"):
        image.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"none of its 30 inputs can be used \(30 unreadable\)"):
        build_shards(make_config(max_skipped=1.0), console)


def test_a_second_run_finds_the_set_and_leaves_it(make_config: MakeConfig, console: Console) -> None:
    config = make_config()
    first = build_shards(config, console)
    before = {path: path.stat().st_mtime_ns for path in Path(config.out).iterdir()}
    (Path(config.out) / ".build").mkdir()  # as if killed while tidying up
    (Path(config.out) / ".partial-train-00000.tar.x").write_bytes(b"half")
    assert build_shards(config, console) == first
    assert "already built" in console.file.getvalue()  # type: ignore[attr-defined]
    assert {path: path.stat().st_mtime_ns for path in Path(config.out).iterdir()} == before


def test_a_set_of_other_settings_is_refused_by_their_names(
    make_config: MakeConfig, console: Console, photos: Path
) -> None:
    config = make_config()
    build_shards(config, console)
    before = folder_bytes(config.out)
    other = replace(config, seed=4, image=ImageConfig(size=48))
    with pytest.raises(ManifestError, match=r"image.size: 32 -> 48; settings.seed: 0 -> 4. Choose another `out`"):
        build_shards(other, console)
    with open(photos, "a") as lines:
        lines.write(json.dumps({"image": "000.jpg", "captions": ["one more"], "split": "train"}) + "\n")
    with pytest.raises(ManifestError, match=r"inputs.captions: \d+ -> \d+"):
        build_shards(config, console)
    assert folder_bytes(config.out) == before


def test_an_unfinished_build_of_other_settings_is_refused(make_config: MakeConfig, console: Console) -> None:
    config = make_config()
    interrupt_after_first_shard(config, console)
    with pytest.raises(ManifestError, match=r"unfinished build of other inputs or settings: settings.seed: 0 -> 4"):
        build_shards(replace(config, seed=4), console)


def test_tars_that_no_build_owns_are_not_written_over(make_config: MakeConfig, console: Console) -> None:
    config = make_config()
    Path(config.out).mkdir()
    (Path(config.out) / "train-00007.tar").write_bytes(b"precious")
    with pytest.raises(StorageError, match=r"holds 1 shard files \(train-00007.tar"):
        build_shards(config, console)
    assert folder_bytes(config.out) == {"train-00007.tar": b"precious"}


def interrupt_after_first_shard(config: BuildConfig, console: Console) -> None:
    save = build_state.save_result

    def save_then_stop(out: str, name: str, result: writer.ShardResult) -> None:
        save(out, name, result)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shard_builder.build.save_result", save_then_stop)
        build_shards(config, console)


@pytest.mark.parametrize("harm", ["none", "flip", "cut", "gone", "note"])
def test_an_interrupted_build_goes_on_and_trusts_only_whole_shards(
    make_config: MakeConfig, console: Console, harm: str
) -> None:
    config = make_config(name="interrupted")
    undisturbed: Manifest = build_shards(make_config(name="undisturbed"), console)
    interrupt_after_first_shard(config, console)
    tar = next(Path(config.out).glob("*.tar"))
    if harm == "flip":
        tar.write_bytes(tar.read_bytes()[:-2000] + b"!" + tar.read_bytes()[-1999:])
    elif harm == "cut":
        tar.write_bytes(tar.read_bytes()[:-10240])
    elif harm == "gone":
        tar.with_suffix(".idx").unlink()
    elif harm == "note":
        (Path(config.out) / f".build/{tar.name}.json").write_text("{")
    assert build_shards(config, console) == undisturbed
    assert folder_bytes(config.out) == folder_bytes(make_config(name="undisturbed").out)
    kept = "1 of 4 shards are finished" in console.file.getvalue()  # type: ignore[attr-defined]
    assert kept == (harm == "none")


def test_a_second_builder_is_told_who_is_at_work(make_config: MakeConfig, console: Console) -> None:
    config = make_config()
    with lock(Path(config.out) / ".lock", f"a build of {config.out}"):
        with pytest.raises(StorageError, match=r"in use by a build of .*out \(process \d+ on .*, since 20"):
            build_shards(config, console)
    build_shards(config, console)


def test_an_error_in_a_worker_names_shard_and_image(
    make_config: MakeConfig, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker imports the writer by name, so the defect is planted in a copy of the package's path.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'shard_builder.engines.worker' in ' '.join(sys.orig_argv):\n"
        "    import core.image\n"
        "    def broken(*given): raise OverflowError('planted')\n"
        "    core.image.fit_image = broken\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OverflowError, match="planted") as caught:
        build_shards(make_config(), console)
    assert "train-00000.tar: image 1 of 8, '" in caught.value.__notes__[0]
    assert ".jpg" in caught.value.__notes__[0]


def test_the_contact_sheet_shows_the_same_samples_for_the_same_seed(make_config: MakeConfig, console: Console) -> None:
    sheets = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = make_config(name=name, seed=seed)
        build_shards(config, console)
        sheets.append((Path(config.out) / "contact_sheet.jpg").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("split=../x", "split is '../x'"),
        ("image.fit=stretch", "image.fit|fit is 'stretch'"),
        ("image.size=0", "16 to 4096"),
        ("image.quality=101", "JPEG knows 1 to 100"),
        ("max_skipped=2", "it is a share, 0 to 1"),
        ("workers=-1", "0 means one per core"),
        ("samples_per_shard=0", "at least 1"),
        ("engine=process", "Did you mean 'processes'"),
        ("source.files=x", "unknown option 'files'.* Did you mean 'file'"),
        ("sourc=x", "unknown key 'sourc'.* Did you mean 'source'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(override: str, message: str) -> None:
    good = ["out=/nowhere", "source.name=jsonl", "source.file=x.jsonl"]
    load_config(BuildConfig, None, good)
    with pytest.raises(ConfigError, match=message):
        load_config(BuildConfig, None, [*good, override])


def test_a_larger_build_says_what_it_does(tmp_path: Path, make_config: MakeConfig, console: Console) -> None:
    photos = write_photos(tmp_path / "more", 12, size=(20, 20))
    build_shards(make_config(source=Choice("jsonl", {"file": str(photos)})), console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    for expected in ("12 images", "enlarged", "images/s", "contact_sheet.jpg", "in 2 shards"):
        assert expected in said, said
