"""The cache gives back what was put in, whatever is killed, shared or damaged."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from fake_encoder import SPEC, FakeEncoder, expected
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DamagedError, DataError
from core.manifest import TextEncoderSpec
from core.storage import PARTIAL_PREFIX
from shard_builder import caption_cache
from shard_builder.caption_cache import SUFFIX, CaptionCache

ROOT = Path(__file__).resolve().parents[2]
SOME = [f"caption number {number}" for number in range(100)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.text(max_size=6), max_size=12), max_size=5), st.lists(st.text(max_size=6), max_size=6))
def test_the_cache_is_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, adds: list[list[str]], probe: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache, oracle = CaptionCache(folder, SPEC), {}
    for captions in adds:
        cache.add(captions, expected(captions))
        oracle.update(dict.fromkeys(captions))
    for reader in (cache, CaptionCache(folder, SPEC)):
        assert reader.missing(probe) == [c for c in dict.fromkeys(probe) if c not in oracle]
        known = [c for c in probe if c in oracle]
        assert np.array_equal(reader.lookup(known), expected(known))


def test_keys_with_zero_bytes_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # numpy pads byte strings with zeros: hashes that hold or end in zeros must stay different
    keys = [
        bytes(16),
        bytes(15) + b"a",
        b"a" + bytes(15),
        b"a" + bytes(14) + b"b",
        b"a\0b" + bytes(13),
        b"b" + bytes(15),
    ]
    monkeypatch.setattr(caption_cache.xxhash, "xxh3_128_digest", lambda text: keys[int(text)])
    captions = [str(number) for number in range(len(keys))]
    cache = CaptionCache(tmp_path, SPEC)
    cache.add(captions[:-1], expected(captions[:-1]))
    assert cache.missing(captions) == captions[-1:]
    assert np.array_equal(cache.lookup(captions[:-1]), expected(captions[:-1]))


def test_segments_are_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    shuffled = random.Random(1).sample(SOME, len(SOME))
    for name, captions in (("a", SOME), ("b", [*shuffled, *shuffled[:7]])):
        CaptionCache(tmp_path / name, SPEC).add(captions, expected(captions))
    contents = [{p.name: p.read_bytes() for p in segments(tmp_path / name)} for name in ("a", "b")]
    assert contents[0] == contents[1] and len(contents[0]) == 1


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    cache = CaptionCache(tmp_path, SPEC)
    cache.add(SOME, expected(SOME))
    cache.add(SOME[:5], expected(SOME[:5]))
    assert len(segments(tmp_path)) == 1


def test_encoders_do_not_see_each_others_embeddings(tmp_path: Path) -> None:
    CaptionCache(tmp_path, SPEC).add(SOME, expected(SOME))
    for other in (("fake:model", "v2", 8, "0" * 64), ("fake:model", "main", 8, "1" * 64)):
        assert CaptionCache(tmp_path, TextEncoderSpec(*other)).missing(SOME) == SOME


def test_a_reader_sees_what_another_process_added_later(tmp_path: Path) -> None:
    early = CaptionCache(tmp_path, SPEC)
    assert early.missing(SOME) == SOME
    CaptionCache(tmp_path, SPEC).add(SOME, expected(SOME))
    assert np.array_equal(early.lookup(SOME), expected(SOME))


def test_it_travels_to_worker_processes(tmp_path: Path) -> None:
    cache = CaptionCache(tmp_path, SPEC)
    cache.add(SOME, expected(SOME))
    assert len(pickle.dumps(cache)) < 2000, "the embeddings stay on disk"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert np.array_equal(pool.apply(cache.lookup, (SOME[3:9],)), expected(SOME[3:9]))


def test_an_absent_caption_is_named(tmp_path: Path) -> None:
    cache = CaptionCache(tmp_path, SPEC)
    cache.add(SOME, expected(SOME))
    with pytest.raises(DataError, match=re.escape("1 of 2 captions have no embedding, 'a new one' for one. Embed")):
        cache.lookup([SOME[0], "a new one"])


@pytest.mark.parametrize(
    ("embeddings", "problem"),
    [
        (np.zeros((2, 8), np.float32), "float32 (2, 8), float16 (2, 8) is needed"),
        (np.zeros((2, 9), np.float16), "float16 (2, 9), float16 (2, 8) is needed"),
        (np.array([[0.0] * 8, [np.inf] * 8], np.float16), "the embedding of 'b' is not finite"),
    ],
)
def test_unfit_embeddings_are_refused(tmp_path: Path, embeddings: np.ndarray, problem: str) -> None:
    with pytest.raises(DataError, match=re.escape(problem)):
        CaptionCache(tmp_path, SPEC).add(["a", "b"], embeddings)
    assert not segments(tmp_path)


def test_every_damage_is_found_when_the_segment_is_opened(tmp_path: Path) -> None:
    CaptionCache(tmp_path, SPEC).add(SOME, expected(SOME))
    (path,) = segments(tmp_path)
    whole, draw = path.read_bytes(), random.Random(3)
    damages = [whole[: draw.randrange(len(whole))] for _ in range(20)] + [b"", whole + b"x"]
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        damages.append(bytes(flipped))
    for damage in damages:
        path.write_bytes(damage)
        for read in (CaptionCache(tmp_path, SPEC).missing, CaptionCache(tmp_path, SPEC).lookup):
            with pytest.raises(
                DamagedError, match=f"{path.name}: is damaged. Delete it: its captions are embedded again"
            ):
                read(SOME)
    path.unlink()
    assert CaptionCache(tmp_path, SPEC).missing(SOME) == SOME


def test_left_overs_of_killed_writers_are_swept_but_not_those_of_living_ones(tmp_path: Path) -> None:
    cache = CaptionCache(tmp_path, SPEC)
    cache.folder.mkdir(parents=True)
    dead, living = cache.folder / f"{PARTIAL_PREFIX}dead", cache.folder / f"{PARTIAL_PREFIX}living"
    dead.touch(), living.touch()
    os.utime(dead, (time.time() - 9999,) * 2)
    cache.add(SOME, expected(SOME))
    assert not dead.exists() and living.exists()


def test_only_missing_captions_are_embedded_and_saved_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shard_builder import caption_embeddings

    monkeypatch.setattr(caption_embeddings, "SEGMENT_CAPTIONS", 30)
    cache, told = CaptionCache(tmp_path, SPEC), []
    cache.add(SOME[:20], expected(SOME[:20]))
    caption_embeddings.embed_missing(cache, FakeEncoder(), [*SOME, *SOME], 4, told.append)
    assert told[-1] == 80 and len(segments(tmp_path)) >= 3
    assert np.array_equal(cache.lookup(SOME), expected(SOME))
    caption_embeddings.embed_missing(cache, FakeEncoder(), SOME, 4, lambda done: pytest.fail("nothing is missing"))


def test_killed_at_any_moment_it_holds_only_whole_segments_and_goes_on(tmp_path: Path) -> None:
    captions, draw = numbered(0, 3000), random.Random(5)
    kills = seen = 0
    for _ in range(12):
        writer = start_writer(tmp_path, 0, len(captions))
        assert writer.stdout and writer.stdout.readline() == "started\n"
        wanted = len(segments(tmp_path)) + draw.randint(0, 20)  # of 300
        while len(segments(tmp_path)) < wanted:
            assert writer.poll() is None, "the writer ended early"
            time.sleep(0.001)
        writer.send_signal(signal.SIGKILL)
        kills += writer.wait() == -signal.SIGKILL
        there = held(tmp_path, captions)
        assert len(there) >= seen, "a killed writer must not lose what was saved"
        seen = len(there)
    assert kills == 12 and seen > 0
    assert start_writer(tmp_path, 0, len(captions)).wait(timeout=120) == 0
    assert held(tmp_path, captions) == captions


def test_two_builds_fill_one_cache_at_once(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, 0, 600), start_writer(tmp_path, 300, 900)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert held(tmp_path, numbered(0, 900)) == numbered(0, 900)
    assert not list(tmp_path.rglob(f"{PARTIAL_PREFIX}*"))


WRITER = """
    import sys
    from pathlib import Path
    from shard_builder.caption_cache import CaptionCache
    from test_caption_cache import SPEC, expected, numbered
    cache, captions = CaptionCache(Path(sys.argv[1]), SPEC), numbered(int(sys.argv[2]), int(sys.argv[3]))
    print("started", flush=True)
    while missing := cache.missing(captions)[:10]:
        cache.add(missing, expected(missing))
"""


def start_writer(folder: Path, first: int, last: int) -> subprocess.Popen[str]:
    """Another process that embeds captions `first` to `last`, ten at a time, into the cache at `folder`."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), str(first), str(last)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    )


def held(folder: Path, captions: list[str]) -> list[str]:
    """Those of `captions` that the cache at `folder` holds, each with the right embedding."""
    cache = CaptionCache(folder, SPEC)
    missing = set(cache.missing(captions))
    there = [caption for caption in captions if caption not in missing]
    assert np.array_equal(cache.lookup(there), expected(there))
    return there


def numbered(first: int, last: int) -> list[str]:
    """Distinct captions."""
    return [f"caption number {number}" for number in range(first, last)]


def segments(folder: Path) -> list[Path]:
    """All segment files."""
    return sorted(folder.rglob(f"*{SUFFIX}"))
