"""Columns in a batch: one drawn caption for all of them, repeats drawn anew, features without a picture."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from column_folders import add_column
from shard_sets import damage, make_shard_set

from core.config import Choice, from_mapping
from core.errors import ConfigError, DamagedError, DataError, ManifestError
from core.manifest import load_manifest, save_manifest
from core.seeding import uniform
from core.shard_index import IMAGE, NPY
from core.shard_set import ShardSet
from trainer.config import TrainConfig
from trainer.data.columns import most_captions
from trainer.data.ledger import CoverageLedger
from trainer.data.loader import EvalLoader, TrainLoader

N, G = 40, 8
COUNTS = np.array([1 + i % 4 for i in range(N)])
COLUMNS = {"text": "", "label": "labels", "tokens": "tokens", "image_features": "features.tower"}


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = make_shard_set(tmp_path / "set", N, num_captions=COUNTS.tolist())
    add_column(url, "labels", (np.arange(N) % 5).astype("<i4"), classes=tuple("abcde"))
    add_column(url, "tokens", np.arange(COUNTS.sum() * 6, dtype="<i4").reshape(-1, 6), counts=COUNTS)
    add_column(url, "features.tower", np.random.default_rng(0).normal(size=(N, 7)).astype("<f4"))
    return url


def with_captions(values: np.ndarray) -> list[np.ndarray]:
    """The values of each sample's captions."""
    return np.split(values, np.cumsum(COUNTS)[:-1])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_column_speaks_of_the_sample_and_of_one_caption(url: str, num_workers: int) -> None:
    shard_set = ShardSet.open(url)
    tokens = with_captions(np.arange(COUNTS.sum() * 6).reshape(-1, 6))
    features = np.random.default_rng(0).normal(size=(N, 7)).astype("<f4")
    loader = TrainLoader(shard_set, global_batch_size=G, seed=3, columns=COLUMNS, num_workers=num_workers)
    for batch in loader.epoch(1):
        assert set(batch.columns) == {"image_id", *COLUMNS}
        for row, sample in enumerate(batch.samples.tolist()):
            caption = int(uniform(3, 1, np.array([sample]), "caption", 1)[0, 0] * COUNTS[sample])
            assert batch.column("tokens")[row].tolist() == tokens[sample][caption].tolist()
            assert (batch.column("text")[row].numpy() == shard_set.embeddings(sample)[caption]).all()
            assert int(batch.column("label")[row]) == sample % 5
            assert (batch.column("image_features")[row].numpy() == features[sample]).all()
    loader.close()


def test_evaluation_gets_the_values_of_all_captions(url: str) -> None:
    shard_set = ShardSet.open(url)
    batches = list(EvalLoader(shard_set, batch_size=7, columns={"text": "", "tokens": "tokens"}))
    values = torch.cat([batch.ragged("tokens").values for batch in batches])
    assert values.flatten().tolist() == list(range(COUNTS.sum() * 6))
    for name in ("text", "tokens"):
        assert torch.cat([batch.ragged(name).counts for batch in batches]).tolist() == COUNTS.tolist()


def test_without_pictures_none_is_read(url: str) -> None:
    damage(url, 3)  # the picture
    columns = {"text": "", "image_features": "features.tower"}
    for num_workers in (0, 2):
        loader = TrainLoader(
            ShardSet.open(url), global_batch_size=G, columns=columns, pictures=False, num_workers=num_workers
        )
        batches = [batch for epoch in range(3) for batch in loader.epoch(epoch)]
        assert all(batch.images is None and batch.decode_s < 0.01 and not batch.damaged for batch in batches)
        assert len({int(s) for batch in batches[:5] for s in batch.samples}) == N
        loader.close()
    with pytest.raises(DamagedError, match="1 damaged samples"):
        list(TrainLoader(ShardSet.open(url), global_batch_size=G).epoch(0))


def test_a_missing_column_ends_it_before_the_first_batch(url: str) -> None:
    with pytest.raises(ManifestError, match=r"has no column 'label'\. Did you mean 'labels'\?"):
        TrainLoader(ShardSet.open(url), global_batch_size=G, columns={"label": "label"})


def test_captions_without_embeddings_end_it_before_the_first_batch_only_where_they_are_asked_for(url: str) -> None:
    save_manifest(replace(load_manifest(url), text_encoder=None), url)
    with pytest.raises(ManifestError, match="has no caption embeddings"):
        TrainLoader(ShardSet.open(url), global_batch_size=G)
    (*_, batch) = TrainLoader(ShardSet.open(url), global_batch_size=G, columns={"label": "labels"}).epoch(0)
    assert set(batch.columns) == {"image_id", "label"}


def test_damage_in_a_column_is_named_and_nothing_stands_in(url: str) -> None:
    path = Path(url) / "columns" / "labels" / "train-00001.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    loader = TrainLoader(ShardSet.open(url), global_batch_size=G, columns=COLUMNS, max_damaged=9)
    with pytest.raises(DamagedError, match=r"columns/labels/train-00001\.npy"):
        list(loader.epoch(0))


def test_a_substitute_has_the_draw_of_the_failed_position(url: str) -> None:
    sound = TrainLoader(ShardSet.open(url), global_batch_size=G, seed=1)
    declared = [(b.step, b.draws.tolist()) for b in sound.epoch(0)]
    for member in (IMAGE, NPY):
        damage(url, 10, member)
    shard_set = ShardSet.open(url)
    loader = TrainLoader(shard_set, global_batch_size=G, seed=1, columns=COLUMNS, max_damaged=1)
    batches = list(loader.epoch(0))
    assert [(b.step, b.draws.tolist()) for b in batches] == declared
    (found,) = [(batch, damaged) for batch in batches for damaged in batch.damaged]
    batch, damaged = found
    assert (damaged.sample, damaged.substitute, int(batch.samples[damaged.row])) == (10, 11, 11)
    caption = int(uniform(1, 0, np.array([10]), "caption", 1)[0, 0] * COUNTS[11])  # draw 10, captions of 11
    assert (batch.column("text")[damaged.row].numpy() == shard_set.embeddings(11)[caption]).all()
    assert int(batch.column("label")[damaged.row]) == 11 % 5


def visits_of_one(url: str, visits: int) -> tuple[TrainLoader, int]:
    """A loader whose every epoch visits sample 0 of a set of its own that often, half of all draws."""
    folder = Path(url).parent / "one"
    if not folder.exists():
        make_shard_set(folder, 1, num_captions=[4], seed=9)
    many = Path(url).parent / "many"
    if not many.exists():
        make_shard_set(many, 2 * visits - 1, num_captions=1, size=32, samples_per_shard=200, seed=8)
    sampler = Choice("mix", {"weights": (1.0, 1.0)})
    return TrainLoader(ShardSet.open((str(folder), str(many))), global_batch_size=20, sampler=sampler), 2 * visits


def test_three_hundred_visits_of_a_sample_are_three_hundred(url: str) -> None:
    loader, num_samples = visits_of_one(url, 300)
    ledger = CoverageLedger(num_samples, 20, 0, 1, 0)
    ledger.start(0, loader.order(0))
    draws, captions = [], []
    for batch in loader.epoch(0):
        ledger.add(batch)
        own = (batch.samples == 0).nonzero()[:, 0]
        draws += batch.draws[own].tolist()
        captions += [batch.column("text")[row].numpy().tobytes() for row in own]
    report = ledger.finish()
    assert (report.declared, report.seen, report.repeated, report.missed) == (600, 600, 0, 0)
    assert draws == [k * num_samples for k in range(300)]
    assert len(set(captions)) == 4  # not the same caption again and again


def test_a_visit_too_many_or_too_few_is_found(url: str) -> None:
    for change, complaint in ((1, "0 missed, 1 repeated (0)"), (-1, "1 missed (0), 0 repeated")):
        loader, num_samples = visits_of_one(url, 300)
        ledger = CoverageLedger(num_samples, 20, 0, 1, 0)
        ledger.start(0, loader.order(0))
        for batch in loader.epoch(0):
            ledger.add(batch)
            row = (batch.samples == 0).nonzero()[0]
            if batch.step == 7 and change == 1:
                ledger.add(replace(batch, samples=batch.samples[row], draws=batch.draws[row]))
        if change == -1:
            ledger._counts[0] -= 1
        with pytest.raises(DataError) as caught:
            ledger.finish()
        assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("sampler", "error", "complaint"),
    [
        (Choice("class_balanced", {"num_classes": 4, "num_per_class": 3}), ConfigError, "12, global_batch_size is 8"),
        (
            Choice("class_balanced", {"num_classes": 4, "num_per_class": 2, "column": "topics"}),
            ManifestError,
            "no column 'topics'",
        ),
        (
            Choice("topical", {"column": "features.tower"}),
            ConfigError,
            "is features, a number for each sample is needed",
        ),
        (Choice("topical", {"column": "tokens"}), ConfigError, "is tokens, a number for each sample is needed"),
        (Choice("mix", {"weights": (1.0, 2.0)}), ConfigError, "weights has 2 numbers, data.train 1 sets"),
    ],
)
def test_a_sampler_that_does_not_fit_the_data_is_refused_at_once(
    url: str, sampler: Choice, error: type, complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        TrainLoader(ShardSet.open(url), global_batch_size=G, sampler=sampler)


def test_labels_of_several_sets_are_united_by_name(tmp_path: Path) -> None:
    urls = []
    for name, classes in (("a", ("cat", "dog")), ("b", ("dog", "emu"))):
        urls.append(make_shard_set(tmp_path / name, 10, seed=ord(name)))
        add_column(urls[-1], "labels", np.array([0, 1, -1, 0, 1] * 2, dtype="<i4"), classes=classes)
    column = ShardSet.open(urls).column("labels")
    assert column.classes == ("cat", "dog", "emu")
    assert column.all_rows().tolist() == [0, 1, -1, 0, 1] * 2 + [1, 2, -1, 1, 2] * 2
    assert column.rows(np.array([19, 0, 12])).tolist() == [2, 0, -1]


def test_sets_of_two_codecs_are_read_as_one_each_by_its_own(tmp_path: Path) -> None:
    urls = [make_shard_set(tmp_path / codec, 12, codec=codec, seed=3) for codec in ("jpeg", "raw")]
    shard_set = ShardSet.open(urls)
    batch = next(TrainLoader(shard_set, global_batch_size=24).epoch(0))
    assert batch.images is not None
    pictures = {int(sample): picture for sample, picture in zip(batch.samples, batch.images.float())}
    for sample in range(12):  # the same pictures in both: JPEG at quality 95 is close
        assert (pictures[sample] - pictures[sample + 12]).abs().mean() < 8
        assert (pictures[sample] - pictures[(sample + 1) % 12 + 12]).abs().mean() > 20
    assert [shard_set.image_spec(sample).codec for sample in (0, 11, 12, 23)] == ["jpeg", "jpeg", "raw", "raw"]


def test_sets_of_two_sizes_or_fits_are_refused_by_name(tmp_path: Path) -> None:
    small, large = (make_shard_set(tmp_path / str(size), 4, size=size) for size in (32, 48))
    with pytest.raises(
        ManifestError, match=r"48: its images are 48 px by crop, those of .*32 32 px by crop: a batch has"
    ):
        ShardSet.open((small, large))
    manifest = load_manifest(small)
    other = make_shard_set(tmp_path / "other", 4, size=32)
    save_manifest(replace(load_manifest(other), image=replace(manifest.image, fit="pad")), other)
    with pytest.raises(ManifestError, match=r"other: its images are 32 px by pad, those of .*32 32 px by crop"):
        ShardSet.open((small, other))


def test_a_recipe_cannot_rename_what_batches_have_of_their_own() -> None:
    for name in ("text", "image_id", "image_features"):
        values = {"run_dir": "run", "global_batch_size": 8, "data": {"train": "set", "columns": {name: "topics"}}}
        with pytest.raises(ConfigError, match=f"data.columns: '{name}' is a name that batches have of their own"):
            from_mapping(TrainConfig, values, "test")


def test_a_column_of_more_shards_than_files_may_be_open_is_read(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path / "set", 120, samples_per_shard=1, num_captions=2)
    add_column(url, "labels", np.arange(120, dtype="<i4"), classes=tuple(map(str, range(120))))
    add_column(url, "tokens", np.arange(480, dtype="<i4").reshape(-1, 2), counts=np.full(120, 2))
    shard_set = ShardSet.open(url)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, hard))
    try:
        labels, tokens = shard_set.column("labels"), shard_set.column("tokens")
        assert labels.all_rows().tolist() == list(range(120))
        assert labels.rows(np.arange(120)).tolist() == list(range(120))
        assert [tokens.of_captions(sample)[1, 1] for sample in range(120)] == [4 * n + 3 for n in range(120)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_text_must_be_embeddings(url: str) -> None:
    with pytest.raises(
        ManifestError, match=r"column 'labels' is labels, caption embeddings are needed. Text columns: none"
    ):
        ShardSet.open(url, text="labels")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_caption_comes_filled_up_with_zeros_to_the_most_that_a_sample_has(url: str, num_workers: int) -> None:
    shard_set = ShardSet.open(url)
    tokens = with_captions(np.arange(COUNTS.sum() * 6).reshape(-1, 6))
    columns = {"text": "", "tokens": "tokens", "label": "labels"}
    loader = TrainLoader(shard_set, global_batch_size=G, columns=columns, all_captions=True, num_workers=num_workers)
    for batch in loader.epoch(0):
        text, numbers = batch.column("text"), batch.column("tokens")
        assert text.shape == (G, 4, 8) and numbers.shape == (G, 4, 6)  # 4 is the most, in every batch
        for row, sample in enumerate(batch.samples.tolist()):
            count = int(batch.column("num_captions")[row])
            assert count == COUNTS[sample] and int(batch.column("label")[row]) == sample % 5
            assert (text[row, :count].numpy() == shard_set.embeddings(sample)).all()
            assert numbers[row, :count].tolist() == tokens[sample].tolist()
            assert not text[row, count:].any() and not numbers[row, count:].any()
    loader.close()


def test_captions_are_counted_by_a_column_where_no_embeddings_are_read(url: str) -> None:
    columns = {"label": "labels", "tokens": "tokens"}
    for batch in TrainLoader(ShardSet.open(url), global_batch_size=G, columns=columns, all_captions=True).epoch(0):
        assert batch.column("num_captions").tolist() == COUNTS[batch.samples.numpy()].tolist()
        assert batch.column("tokens").shape == (G, 4, 6)


def test_the_most_captions_are_counted_over_the_whole_set(url: str) -> None:
    shard_set = ShardSet.open(url)
    assert most_captions(shard_set, {"text": ""}) == most_captions(shard_set, {"tokens": "tokens"}) == COUNTS.max()
