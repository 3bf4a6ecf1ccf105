"""`shardclip.open_shards`: samples, captions, vectors, a torch loader, and the webdataset library's own pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gloo
import numpy as np
import pytest
import torch
from fake_encoder import expected as embedding_of
from foreign_tars import others, write_tars
from photo_folders import picture
from PIL import Image
from rich.console import Console
from shard_sets import make_shard_set
from torch.utils.data import DistributedSampler

import shardclip
from core.errors import ConfigError, DamagedError, DataError, ManifestError
from shard_builder.index_tars import index_shards


def lines(photos: Path) -> dict[str, dict[str, Any]]:
    return {line["image"]: line for line in map(json.loads, (photos / "captions.jsonl").read_text().splitlines())}


def test_samples_are_the_photos_with_their_captions_and_vectors(photos: Path, build_set: Callable[..., str]) -> None:
    shards, source = shardclip.open_shards(build_set()), lines(photos)
    assert len(shards) == len(source) == len(list(shards))
    seen = set()
    for number, sample in enumerate(shards):
        name = sample.info["image_id"]
        seen.add(name)
        assert (sample.number, sample.key) == (number, f"{number // 3 * 3 + number % 3:09d}")
        assert sample.captions == shards.captions(number) == source[name]["captions"]
        assert sample.vectors.dtype == np.float32
        np.testing.assert_array_equal(sample.vectors, embedding_of(sample.captions).astype(np.float32))
        photo = Image.open(photos / name)
        side, (left, top) = min(photo.size), [(length - min(photo.size)) / 2 for length in photo.size]
        box = (left, top, left + side, top + side)
        shown = photo.resize((32, 32), Image.Resampling.BICUBIC, box)
        assert np.abs(np.asarray(sample.image).astype(int) - np.asarray(shown)).mean() < 3
    assert seen == set(source)
    assert shards[-1].number == len(shards) - 1 and [s.number for s in shards[1:3]] == [1, 2]
    with pytest.raises(IndexError, match="sample 6: there are 6"):
        shards[6]


def test_several_sets_follow_each_other_and_a_set_without_vectors_has_none(tmp_path: Path) -> None:
    urls = [make_shard_set(tmp_path / name, 5, seed=seed, source=name) for seed, name in enumerate("ab")]
    shards = shardclip.open_shards(urls)
    assert [sample.info["source"] for sample in shards] == ["a"] * 5 + ["b"] * 5
    with pytest.raises(ManifestError, match="no shard set is there"):
        shardclip.open_shards(tmp_path / "nowhere")
    adopted = shardclip.open_shards(adopt(tmp_path / "adopted", others(4)))
    assert not adopted.has_vectors and [sample.vectors for sample in adopted] == [None] * 4
    assert adopted[0].captions == ["a text 0"]
    assert "vectors" not in next(iter(adopted.loader(4)))
    with pytest.raises(ManifestError, match="shardclip embed"):
        adopted.vectors(0)


def adopt(folder: Path, samples: list[dict[str, Any]]) -> str:
    """Tars as others write them, indexed; they have no vectors."""
    write_tars(folder, samples)
    index_shards(str(folder), size=32, workers=1, console=Console(quiet=True))
    return str(folder)


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    samples = others(4)
    samples[3]["jpg"] = b"\xff\xd8\xff no picture"
    shards = shardclip.open_shards(adopt(tmp_path / "adopted", samples))
    for read in (lambda: shards[3], lambda: shards.image(3), lambda: list(shards.loader(4))):
        with pytest.raises(DataError, match=r"\.tar: sample shop/item_3: its picture cannot be decoded \(unreadable"):
            read()
    assert shards[0].image.size == shards[2].image.size == (32, 32)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_torch_loader_gives_every_sample_once(tmp_path: Path, num_workers: int) -> None:
    shards = shardclip.open_shards(make_shard_set(tmp_path, 7, num_captions=[1, 2, 3, 1, 2, 3, 1]))
    batches = list(shards.loader(3, num_workers=num_workers))
    assert [len(batch["samples"]) for batch in batches] == [3, 3, 1]
    for batch in batches:
        assert batch["images"].dtype == torch.uint8 and batch["images"].shape[1:] == (3, 32, 32)
        for image, captions, vectors, number in zip(*(batch[k] for k in ("images", "captions", "vectors", "samples"))):
            sample = shards[int(number)]
            np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(sample.image))
            assert captions == sample.captions
            np.testing.assert_array_equal(vectors, sample.vectors)
    assert sorted(n for b in shards.loader(2, shuffle=True) for n in b["samples"].tolist()) == list(range(7))
    halves = [DistributedSampler(shards, 2, rank, shuffle=False) for rank in (0, 1)]
    dealt = [n for half in halves for b in shards.loader(4, sampler=half) for n in b["samples"].tolist()]
    assert set(dealt) == set(range(7))


def test_a_transform_is_what_is_stacked(tmp_path: Path) -> None:
    from torchvision.transforms import ToTensor

    shards = shardclip.open_shards(make_shard_set(tmp_path, 2))
    batch = next(iter(shards.loader(2, transform=ToTensor())))
    plain = next(iter(shards.loader(2)))
    np.testing.assert_allclose(batch["images"], plain["images"].float() / 255, atol=1e-7)


def test_webdatasets_own_pipeline_reads_the_same(photos: Path, build_set: Callable[..., str]) -> None:
    shards = shardclip.open_shards(build_set())
    found = list(shards.webdataset())
    assert [sample["__key__"] for sample in found] == [sample.key for sample in shards]
    for theirs, ours in zip(found, shards):
        assert (theirs["txt"], theirs["json"]) == (ours.captions[0], ours.info)
        np.testing.assert_array_equal(theirs["npy"], ours.vectors)
        assert isinstance(theirs["jpg"], Image.Image)
        assert np.abs(np.asarray(theirs["jpg"]).astype(int) - np.asarray(ours.image)).max() <= 1
    assert isinstance(next(iter(shards.webdataset(decode=None)))["jpg"], bytes)
    with pytest.raises(ConfigError, match="shuffle is -1"):
        shards.webdataset(shuffle=-1)


def test_a_picture_that_cannot_be_decoded_is_named_and_can_be_passed_over(tmp_path: Path) -> None:
    from webdataset import warn_and_continue

    samples = [{"__key__": f"{n}", "jpg": picture(n, (40, 40)), "txt": "a text"} for n in range(3)]
    samples[1]["jpg"] = picture(1, (40, 40))[:200]
    tars = write_tars(tmp_path / "others", samples)
    index_shards(str(tars), size=32, workers=1, console=Console(quiet=True))
    shards = shardclip.open_shards(tars)
    with pytest.raises(DamagedError, match=r"00000.tar: sample 1: its .*jpg cannot be decoded"):
        list(shards.webdataset())
    passed_over = shards.webdataset(decode=None).decode("pil", handler=warn_and_continue)
    assert [sample["__key__"] for sample in passed_over] == ["0", "2"]


def test_a_shuffled_pipeline_has_every_sample_and_another_order_each_epoch(tmp_path: Path) -> None:
    shards = shardclip.open_shards(make_shard_set(tmp_path, 40, samples_per_shard=4))
    pipeline = shards.webdataset(shuffle=16, seed=1)
    epochs = [[sample["__key__"] for sample in pipeline] for _ in range(2)]
    in_order = [sample.key for sample in shards]
    assert sorted(epochs[0]) == sorted(epochs[1]) == in_order
    assert epochs[0] != epochs[1] and in_order not in epochs
    again = [sample["__key__"] for sample in shards.webdataset(shuffle=16, seed=1)]
    assert again == epochs[0]


@pytest.mark.parametrize("persistent", [False, True])
def test_shuffling_workers_have_another_order_each_epoch_which_torchs_seed_decides(
    tmp_path: Path, persistent: bool
) -> None:
    from webdataset import WebLoader

    shards = shardclip.open_shards(make_shard_set(tmp_path, 40, samples_per_shard=4))

    def epochs(torch_seed: int, seed: int = 1) -> list[list[str]]:
        torch.manual_seed(torch_seed)
        pipeline = shards.webdataset(shuffle=16, seed=seed, decode=None)
        loader = WebLoader(pipeline, batch_size=None, num_workers=2, persistent_workers=persistent)
        return [[sample["__key__"] for sample in loader] for _ in range(3)]

    found = epochs(5)
    assert len({tuple(order) for order in found}) == 3
    assert all(sorted(order) == [sample.key for sample in shards] for order in found)
    assert epochs(5) == found
    assert epochs(6)[0] != found[0] and epochs(5, seed=2)[0] != found[0]


def keys_of_this_rank(url: str, num_workers: int) -> list[str]:
    from webdataset import WebLoader

    pipeline = shardclip.open_shards(url).webdataset(decode=None)
    return [sample["__key__"] for sample in WebLoader(pipeline, batch_size=None, num_workers=num_workers)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_nodes_and_workers_share_the_tars_without_a_repeat(tmp_path: Path, num_workers: int) -> None:
    url = make_shard_set(tmp_path, 24, samples_per_shard=3)  # eight tars: two ranks of two workers
    shares = gloo.run(2, keys_of_this_rank, url, num_workers)
    assert all(len(share) == 12 for share in shares)
    assert sorted(key for share in shares for key in share) == [f"{number:09d}" for number in range(24)]
