"""Flipped bits, cut, emptied, lengthened, missing and swapped files of shard sets: found before use, and named.

Who finds what:
    manifest, index        `ShardSet.open`, so every run, evaluation and search, before its first sample
    size of a tar          `ShardSet.open`
    image, embeddings      the loader, when it reads the sample (here: a whole epoch); what it has handed out until
                           then is what was written
    texts                  `ShardSet.captions`, when evaluation or a preview reads them: the json, of adopted sets also
                           the txt
    tar headers, padding,  nobody reads them but other people's tar readers: `shardclip verify`
    txt of built sets
    rejected.jsonl, contact_sheet.jpg, build.json: no run reads them: `shardclip verify`

`verify` finds every one of them in a shard set, whoever else does. 1,400 of the 2,000 damages
of the long form are here, the others in test_flips_elsewhere.py. The seed is printed; SHARDCLIP_FAULT_SEED replays.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from damages import CUT, EMPTY, LONGER, MISSING, SWAP, Damage, Finder, damaged, files_of, unfound
from in_this_process import InThisProcess
from photo_folders import quick_recipe, write_photos
from rich.console import Console
from webdataset import ShardWriter

from core import manifest, shard_set
from core.config import Choice
from core.errors import ShardclipError
from core.shard_index import IMAGE, JSON, NPY, TXT
from core.shard_set import ShardSet
from shard_builder import verify
from shard_builder.build import build_shards
from shard_builder.embed import embed_shards
from shard_builder.index_tars import index_shards
from trainer.data.loader import TrainLoader

FULL = pytest.mark.faults


@pytest.fixture
def built_set(tmp_path: Path, caption_cache: Path) -> Path:
    """30 samples in 4 shards, and 2 inputs that were left out."""
    photos = write_photos(tmp_path / "photos", 32)
    for name in ("004.jpg", "017.jpg"):
        (photos.parent / name).write_bytes(b"no picture")
    config = quick_recipe(photos, tmp_path / "built", caption_cache, samples_per_shard=8, max_skipped=0.5)
    build_shards(config, Console(file=io.StringIO()))
    return Path(config.out)


@pytest.fixture
def adopted_set(tmp_path: Path, caption_cache: Path) -> Path:
    """16 samples in 4 foreign tars, one without a caption, embeddings in a column."""
    photos = write_photos(tmp_path / "others", 17).parent
    folder = tmp_path / "adopted"
    folder.mkdir()
    with ShardWriter(str(folder / "%05d.tar"), maxcount=5, verbose=0) as writer:
        for number, path in enumerate(sorted(photos.glob("*.jpg"))):
            text = {} if number == 6 else {"txt": f"a text {number}", "json": {"url": f"http://x/{number}"}}
            writer.write({"__key__": f"{number:04d}", "jpg": path.read_bytes(), **text})
    console = Console(file=io.StringIO())
    index_shards(str(folder), size=32, workers=1, console=console)
    embed_shards(str(folder), Choice("fake"), cache_dir=caption_cache, console=console)
    return folder


@pytest.mark.parametrize("count", [100, pytest.param(900, marks=FULL)])
def test_damage_to_a_built_set_is_found(
    built_set: Path, count: int, fault_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "ProcessesEngine", InThisProcess)
    assert unfound(files_of(built_set), count, fault_seed, in_shard_set(built_set)) == []


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=FULL)])
def test_damage_to_an_adopted_set_is_found(
    adopted_set: Path, count: int, fault_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "ProcessesEngine", InThisProcess)
    assert unfound(files_of(adopted_set), count, fault_seed, in_shard_set(adopted_set)) == []


@pytest.mark.parametrize(
    ("owner", "name"),
    [(shard_set, "checksum"), (shard_set, "sha256_of"), (manifest, "_signed"), (verify, "sha256_of")],
)
def test_without_one_of_the_checks_this_suite_turns_red(
    built_set: Path, owner: Any, name: str, fault_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "ProcessesEngine", InThisProcess)
    find = in_shard_set(built_set)
    monkeypatch.setattr(owner, name, lambda data: AgreesWithAll())
    missed = unfound(files_of(built_set), 200, fault_seed, find)
    assert any("stumbled" not in sentence for sentence in missed), missed


class AgreesWithAll(str):
    """A planted defect: a hash that fits everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


def in_shard_set(folder: Path) -> Finder:
    """Train on the set and read its texts, then verify it."""
    sound_batches, sound_texts = batches_of(folder), texts_of(folder)
    assert verify_names(folder) == set() and sound_batches[1] is sound_texts[1] is None
    read = {name: members_read(folder / name) for name in {f.name for f in folder.glob("*.tar")}}

    def find(damage: Damage) -> str | None:
        with damaged(damage):
            for user, (sound, _), (found, error) in (
                ("training", sound_batches, batches_of(folder)),
                ("texts", sound_texts, texts_of(folder)),
            ):
                if found != sound[: len(found)]:
                    return f"{user} used what was not written"
                if error is None and user in must_find(damage, read):
                    return f"{user} read it and found nothing"
                if error is not None and not any(name in error for name in damage.names):
                    return f"{user} does not name the file: {error}"
            if not damage.names & verify_names(folder):
                return f"verify names {verify_names(folder)}"
        return None

    return find


def must_find(damage: Damage, members: dict[str, dict[str, list[tuple[int, int]]]]) -> set[str]:
    """Who reads the damaged bytes, and so has to find them damaged."""
    suffixes = {Path(name).suffix for name in damage.names}
    if damage.file.name == "manifest.json" or ".idx" in suffixes:
        return {"training", "texts"}
    if not suffixes & {".tar", ".emb"}:
        return set()
    if damage.kind in (CUT, EMPTY, LONGER, MISSING):
        return {"training", "texts"}
    if damage.kind == SWAP:
        return {"training"}
    byte = damage.place // 8
    places = members.get(damage.file.name, {"training": [(0, damage.file.stat().st_size)]})
    return {user for user, own in places.items() if any(start <= byte < start + size for start, size in own)}


def members_read(tar: Path) -> dict[str, list[tuple[int, int]]]:
    """The places in a tar that training reads, and those that readers of texts read."""
    opened = ShardSet.open(str(tar.parent))
    index = opened._index([entry.name for entry in opened.manifests[0].shards].index(tar.name))
    used = {IMAGE: "training", NPY: "training", JSON: "texts", TXT: "texts" if is_adopted(opened) else "others"}
    users: dict[str, list[tuple[int, int]]] = {user: [] for user in used.values()}
    for column, member in enumerate(index.members):
        if member.file == tar.name:
            users[used[member.name]] += [(int(r["offset"]), int(r["length"])) for r in index.records[:, column]]
    return users


def is_adopted(opened: ShardSet) -> bool:
    """The json of a built set holds all captions; a foreign one may leave them to the txt."""
    return opened.image.codec == "mixed"


def batches_of(folder: Path) -> tuple[list[bytes], str | None]:
    """What an epoch of training hands out, until it ends with an error."""
    batches: list[bytes] = []
    try:
        loader = TrainLoader(ShardSet.open(str(folder)), global_batch_size=2)
        for batch in loader.epoch(0):
            batches.append(
                b"".join(
                    part.numpy().tobytes() for part in (batch.images, batch.column("text"), batch.column("image_id"))
                )
            )
        return batches, None
    except ShardclipError as error:
        return batches, str(error)


def texts_of(folder: Path) -> tuple[list[Any], str | None]:
    """All captions and infos, until reading ends with an error."""
    texts: list[Any] = []
    try:
        opened = ShardSet.open(str(folder))
        for sample in range(len(opened)):
            texts.append((opened.captions(sample), opened.info(sample)))
        return texts, None
    except ShardclipError as error:
        return texts, str(error)


def verify_names(folder: Path) -> set[str]:
    return {Path(fault.file).name for fault in verify.verify(str(folder), Console(file=io.StringIO()), workers=1)}
