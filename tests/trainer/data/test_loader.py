"""Training batches: the right pixels and captions, the same for any workers and interruptions; ranks: exactness."""

from __future__ import annotations

import gc
import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from shard_sets import damage, make_shard_set

from core.config import Choice
from core.errors import ConfigError, DamagedError, DataError, ManifestError
from core.seeding import uniform
from core.shard_index import IMAGE, NPY
from core.shard_set import ShardSet
from trainer.data import stream
from trainer.data.batch import Batch
from trainer.data.loader import TrainLoader

N, G = 47, 8
WINDOWS = Choice("uniform", {"window_shards": 2})


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_shard_set(tmp_path_factory.mktemp("set"), N, num_captions=[1 + i % 4 for i in range(N)])


@pytest.fixture
def shard_set(url: str) -> ShardSet:
    return ShardSet.open(url)


def contents(batch: Batch) -> tuple[object, ...]:
    return (
        batch.epoch,
        batch.step,
        batch.samples.tolist(),
        batch.draws.tolist(),
        batch.column("image_id").tolist(),
        batch.images.numpy().tobytes(),
        batch.column("text").numpy().tobytes(),
        batch.damaged,
    )


def test_a_batch_holds_the_pixels_captions_and_ids_of_its_samples(shard_set: ShardSet) -> None:
    loader = TrainLoader(shard_set, global_batch_size=G, seed=3)
    for batch in loader.epoch(2):
        assert batch.images.shape == (G, 3, 32, 32) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.draws.tolist() == batch.samples.tolist()  # every sample comes once
        for row, sample in enumerate(batch.samples.tolist()):
            pixels = simplejpeg.decode_jpeg(bytes(shard_set.member(sample, IMAGE)))
            assert (batch.images[row].permute(1, 2, 0).numpy() == pixels).all()
            captions = shard_set.embeddings(sample)
            drawn = int(uniform(3, 2, np.array([sample]), "caption", 1)[0, 0] * len(captions))
            assert (batch.column("text")[row].numpy() == captions[drawn]).all()
            assert batch.column("image_id")[row].item() == shard_set.image_ids(np.array([sample])).view(np.int64)[0]


def test_every_caption_of_an_image_is_drawn_in_time(shard_set: ShardSet) -> None:
    loader = TrainLoader(shard_set, global_batch_size=N)
    drawn: dict[int, set[bytes]] = {}
    for epoch in range(40):
        for batch in loader.epoch(epoch):
            for sample, text in zip(batch.samples.tolist(), batch.column("text")):
                drawn.setdefault(sample, set()).add(text.numpy().tobytes())
    assert [len(drawn[sample]) for sample in range(N)] == [1 + sample % 4 for sample in range(N)]


def test_raw_images_arrive_as_they_are(tmp_path: Path) -> None:
    shard_set = ShardSet.open(make_shard_set(tmp_path, 12, codec="raw"))
    batch = next(TrainLoader(shard_set, global_batch_size=6).epoch(0))
    stored = np.load(io.BytesIO(bytes(shard_set.member(int(batch.samples[0]), IMAGE))))
    assert (batch.images[0].permute(1, 2, 0).numpy() == stored).all()


@pytest.mark.parametrize("part_rows", [3, 128])
def test_any_number_of_workers_gives_the_same_bytes(
    shard_set: ShardSet, part_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_MAX_PART_ROWS", part_rows)
    runs = []
    for num_workers in (0, 1, 2):
        loader = TrainLoader(shard_set, global_batch_size=G, num_workers=num_workers)
        runs.append([contents(batch) for epoch in range(2) for batch in loader.epoch(epoch)])
        loader.close()
    assert len(runs[0]) == 2 * (N // G)
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_epoch_equals_an_unbroken_one(shard_set: ShardSet, num_workers: int) -> None:
    unbroken = [
        contents(b) for e in range(2) for b in TrainLoader(shard_set, global_batch_size=G, sampler=WINDOWS).epoch(e)
    ]
    loader = TrainLoader(shard_set, global_batch_size=G, num_workers=num_workers, sampler=WINDOWS)
    resumed = [contents(b) for b in loader.epoch(0, 3)] + [contents(b) for b in loader.epoch(1)]
    assert resumed == unbroken[3:]
    loader.close()


def test_persistent_workers_serve_the_epoch_that_is_asked_for(shard_set: ShardSet) -> None:
    loader = TrainLoader(shard_set, global_batch_size=G, num_workers=2)
    abandoned = loader.epoch(0)
    next(abandoned)
    for epoch, start in ((5, 0), (6, 0), (2, 1), (0, 0)):
        batches = list(loader.epoch(epoch, start))
        assert [(b.epoch, b.step) for b in batches] == [(epoch, s) for s in range(start, loader.steps_per_epoch)]
        expected = loader.order(epoch)[start * G : loader.steps_per_epoch * G]
        assert torch.cat([b.samples for b in batches]).tolist() == expected.tolist()
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_epochs_follow_each_other_without_a_new_start_and_any_step_can_follow(
    shard_set: ShardSet, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[int] = []
    start = stream.BatchStream.start
    monkeypatch.setattr(stream.BatchStream, "start", lambda *given: (starts.append(1), start(*given))[1])
    loader = TrainLoader(shard_set, global_batch_size=G, num_workers=num_workers)
    for epoch in range(3):
        assert [b.step for b in loader.epoch(epoch)] == list(range(N // G))
    assert len(starts) == 1
    for epoch, step in ((3, 1), (4, 0), (3, 4)):
        first = next(loader.epoch(epoch, step))
        assert first.samples.tolist() == loader.order(epoch)[step * G : (step + 1) * G].tolist()
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_after_an_error_the_step_can_be_asked_for_again(tmp_path: Path, num_workers: int) -> None:
    url = make_shard_set(tmp_path, 24)
    loader = TrainLoader(ShardSet.open(url), global_batch_size=8, num_workers=num_workers)
    damage(url, int(loader.order(0)[11]))  # of step 1
    batches = loader.epoch(0)
    next(batches)
    with pytest.raises(DamagedError):
        next(batches)
    damage(url, int(loader.order(0)[11]))  # the same bit: whole again
    again = [b.samples.tolist() for b in loader.epoch(0, 1)]
    assert again == loader.order(0)[8:].reshape(2, 8).tolist()
    loader.close()


def test_an_iterator_that_was_replaced_does_not_give_the_batches_of_another(shard_set: ShardSet) -> None:
    loader = TrainLoader(shard_set, global_batch_size=G)
    left = loader.epoch(0)
    next(left)
    loader.epoch(1)
    with pytest.raises(AssertionError, match="replaced"):
        next(left)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_that_are_kept_do_not_change(shard_set: ShardSet, num_workers: int) -> None:
    loader = TrainLoader(shard_set, global_batch_size=G, num_workers=num_workers)
    kept = [b for epoch in range(4) for b in loader.epoch(epoch)]
    for batch in kept:
        sample = int(batch.samples[-1])
        pixels = simplejpeg.decode_jpeg(bytes(shard_set.member(sample, IMAGE)))
        assert (batch.images[-1].permute(1, 2, 0).numpy() == pixels).all()
    loader.close()


def test_a_view_of_the_images_keeps_them_from_being_written_over(shard_set: ShardSet) -> None:
    loader = TrainLoader(shard_set, global_batch_size=G)
    row = next(loader.epoch(0)).images[0]  # the batch itself is gone
    gc.collect()
    before = row.clone()
    for epoch in range(4):
        for _ in loader.epoch(epoch):
            pass
    assert torch.equal(row, before)


def test_buffers_are_used_again(shard_set: ShardSet) -> None:
    loader = TrainLoader(shard_set, global_batch_size=G)
    places = {batch.images.data_ptr() for epoch in range(6) for batch in loader.epoch(epoch)}
    assert len(places) < 8


def test_loading_leaves_the_global_generators_alone(shard_set: ShardSet) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loader = TrainLoader(shard_set, global_batch_size=G, num_workers=1)
    next(loader.epoch(0))
    assert torch.equal(before, torch.get_rng_state())
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_sample_is_replaced_by_the_next_good_one_and_named(tmp_path: Path, num_workers: int) -> None:
    url = make_shard_set(tmp_path, 24)
    damage(url, 13)
    damage(url, 14, NPY)
    damage(url, 23)
    shard_set = ShardSet.open(url)
    batches = []
    for world_size in (1, 2):
        found = {}
        for rank in range(world_size):
            loader = TrainLoader(
                shard_set,
                global_batch_size=8,
                rank=rank,
                world_size=world_size,
                num_workers=num_workers,
                max_damaged=3,
            )
            batches = list(loader.epoch(0))
            for batch in batches:
                for damaged in batch.damaged:
                    assert batch.samples[damaged.row] == damaged.substitute
                    planned = loader.order(0)[batch.step * 8 + rank * (8 // world_size) + damaged.row]
                    assert planned == damaged.sample
                    pixels = simplejpeg.decode_jpeg(bytes(shard_set.member(damaged.substitute, IMAGE)))
                    assert (batch.images[damaged.row].permute(1, 2, 0).numpy() == pixels).all()
                    found[damaged.sample] = (damaged.substitute, damaged.description, damaged.reason)
            loader.close()
        assert {s: substitute for s, (substitute, _, _) in found.items()} == {13: 15, 14: 15, 23: 0}
        assert found[13][1].endswith("train-00001.tar: sample 000000013")
        assert found[13][2] == "checksum"


def test_an_image_of_another_size_is_damage(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    small = bytes(simplejpeg.encode_jpeg(pixels))
    right = bytes(simplejpeg.encode_jpeg(np.zeros((32, 32, 3), np.uint8)))
    shard_set = ShardSet.open(make_shard_set(tmp_path, 4, images=[small, right]))
    (batch,) = TrainLoader(shard_set, global_batch_size=4, max_damaged=2).epoch(0)
    assert {d.sample: d.substitute for d in batch.damaged} == {0: 1, 2: 3}
    assert "16 x 16" in batch.damaged[0].reason


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("max_damaged", [0, 2])
def test_too_much_damage_ends_the_run_and_names_the_samples(tmp_path: Path, num_workers: int, max_damaged: int) -> None:
    url = make_shard_set(tmp_path, 24)
    for sample in (3, 9, 17)[: max_damaged + 1]:
        damage(url, sample)
    loader = TrainLoader(ShardSet.open(url), global_batch_size=8, num_workers=num_workers, max_damaged=max_damaged)
    with pytest.raises(DamagedError) as caught:
        list(loader.epoch(0))
    message = str(caught.value)
    assert message.startswith(f"{max_damaged + 1} damaged samples, max_damaged is {max_damaged}: ")
    assert "train-00000.tar: sample 000000003" in message and "\n" not in message
    loader.close()


def test_the_same_damaged_sample_counts_once_in_a_run(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path, 24)
    damage(url, 5)
    loader = TrainLoader(ShardSet.open(url), global_batch_size=8, max_damaged=1)
    assert sum(len(batch.damaged) for epoch in range(3) for batch in loader.epoch(epoch)) == 3


def test_a_whole_lost_shard_ends_the_run_soon(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path, 24)
    shard_set = ShardSet.open(url)
    tar = Path(url) / "train-00001.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(DamagedError, match="damaged samples, max_damaged is 4"):
        list(TrainLoader(shard_set, global_batch_size=8, max_damaged=4).epoch(0))


def test_a_missing_shard_is_one_sentence_from_any_worker(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path, 24)
    shard_set = ShardSet.open(url)
    (Path(url) / "train-00001.tar").unlink()
    loader = TrainLoader(shard_set, global_batch_size=8, num_workers=1)
    with pytest.raises((DataError, ManifestError, DamagedError, FileNotFoundError), match=r"train-00001\.tar"):
        list(loader.epoch(0))
    loader.close()


def test_a_batch_larger_than_the_set_is_refused(shard_set: ShardSet) -> None:
    with pytest.raises(ConfigError, match="not one whole batch"):
        TrainLoader(shard_set, global_batch_size=64)
