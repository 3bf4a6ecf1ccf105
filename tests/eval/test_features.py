"""Features of a shard set: order, merging, ranks, the validation loss, and files that know their encoder."""

from dataclasses import replace

import gloo
import numpy as np
import pytest
import torch
from shard_sets import damage, make_shard_set
from torch import nn

from core.distributed import rank, world_size
from core.errors import DamagedError, DataError
from core.shard_set import ShardSet
from eval.features import (
    Extracted,
    extract,
    extract_pictures,
    has_pair_loss,
    load_features,
    mean_pair_loss,
    save_features,
)
from eval.metrics import FeatureSet
from trainer.data.loader import EvalLoader
from trainer.objectives import OBJECTIVES
from trainer.objectives.infonce import InfoNCE

CPU = torch.device("cpu")
SCALE = {"scale": torch.tensor(10.0)}


class PixelModel(nn.Module):
    """Features straight from the pixels, so that they can be worked out by hand."""

    def __init__(self, embed_dim=8):
        super().__init__()
        self.embed_dim = embed_dim
        self.text_encoder = None

    def image_features(self, images):
        pixels = nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)[:, : self.embed_dim]
        return nn.functional.normalize(pixels, dim=-1)


def normalize(images):
    return images.float() / 255 - 0.5


def extracted(url, batch_size=4, model=None):
    shard_set = ShardSet.open(url)
    loader = EvalLoader(shard_set, batch_size=batch_size, rank=rank(), world_size=world_size())
    return extract(model or PixelModel(), normalize, shard_set, loader, logit_scale=10.0, device=CPU)


def in_a_group(url, batch_size):
    found = extracted(url, batch_size)
    return found.features.images, found.features.texts, found.features.image_of_text, found.captions


def test_features_stand_in_the_order_of_the_samples_with_their_own_captions(tmp_path):
    url = make_shard_set(tmp_path, 7, num_captions=[1, 2, 3, 4, 5, 6, 7], samples_per_shard=3)
    found = extracted(url, batch_size=3)
    shard_set = ShardSet.open(url)
    row = 0
    for sample in range(7):
        for place, embedding in enumerate(shard_set.embeddings(sample).astype(np.float32)):
            np.testing.assert_allclose(found.features.texts[row], embedding / np.linalg.norm(embedding), atol=1e-6)
            assert found.features.image_of_text[row] == sample
            assert list(found.captions[row]) == [sample, place]
            row += 1
    assert row == len(found.features.texts)
    assert list(found.samples) == list(range(7))


@pytest.mark.parametrize(("ranks", "num_samples"), [(2, 7), (3, 2)])
def test_every_number_of_ranks_gathers_the_same_features(tmp_path, ranks, num_samples):
    url = make_shard_set(tmp_path, num_samples, num_captions=[1 + n % 4 for n in range(num_samples)])
    alone = in_a_group(url, 4)
    for gathered in gloo.run(ranks, in_a_group, url, 2):
        for a, b in zip(alone, gathered, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_samples_that_show_one_image_become_one_row(tmp_path, monkeypatch):
    url = make_shard_set(tmp_path, 6, num_captions=2)
    same = np.array([5, 9, 5, 9, 7, 5], dtype=np.uint64)
    monkeypatch.setattr(ShardSet, "image_ids", lambda self, samples: same[samples])
    found = extracted(url)
    assert list(found.samples) == [0, 1, 4]
    assert list(found.features.image_of_text) == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 0, 0]


def test_extraction_leaves_the_model_in_the_mode_it_found(tmp_path):
    url = make_shard_set(tmp_path, 3)
    model = PixelModel().train()
    extracted(url, model=model)
    assert model.training
    extracted(url, model=model.eval())
    assert not model.training


def test_a_diverged_model_is_refused(tmp_path):
    class Diverged(PixelModel):
        def image_features(self, images):
            return super().image_features(images) * torch.nan

    with pytest.raises(DataError, match="Image row 0 holds NaN"):
        extracted(make_shard_set(tmp_path, 3), model=Diverged())


def test_the_validation_loss_is_the_mean_of_plain_cross_entropies(tmp_path):
    found = extracted(make_shard_set(tmp_path, 10, num_captions=3))
    groups = np.arange(10, dtype=np.uint64)
    images, texts = torch.from_numpy(found.features.images), torch.from_numpy(found.features.texts[::3])
    losses = []
    for start in (0, 4):  # a rest of two images is left out
        logits = 10 * images[start : start + 4] @ texts[start : start + 4].T
        target = torch.arange(4)
        losses.append((nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2)
    assert mean_pair_loss(found, groups, InfoNCE(), SCALE, 4, CPU) == pytest.approx(float(sum(losses)) / 2, rel=1e-5)
    assert mean_pair_loss(found, groups, InfoNCE(), SCALE, 1000, CPU) == mean_pair_loss(
        found, groups, InfoNCE(), SCALE, 10, CPU
    )


def loss_in_a_group(url):
    found = extracted(url, batch_size=50)
    return mean_pair_loss(found, np.arange(11, dtype=np.uint64), InfoNCE(), SCALE, 2, CPU)


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_number_of_processes_gives_the_same_validation_loss(tmp_path, world_size):
    url = make_shard_set(tmp_path, 11, num_captions=2)  # five batches and a rest
    assert gloo.run(world_size, loss_in_a_group, url) == [loss_in_a_group(url)] * world_size


def test_no_switch_of_the_process_lowers_the_precision_of_the_validation_loss():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((64, 128))
    features = FeatureSet(*(rows / np.linalg.norm(rows, axis=1, keepdims=True),) * 2, np.arange(64))
    found = Extracted(features, np.arange(64), np.zeros((64, 2), np.int64), 10.0)
    groups = np.arange(64, dtype=np.uint64)
    expected = mean_pair_loss(found, groups, InfoNCE(), SCALE, 32, CPU)
    torch.set_float32_matmul_precision("medium")
    try:
        assert mean_pair_loss(found, groups, InfoNCE(), SCALE, 32, CPU) == expected
    finally:
        torch.set_float32_matmul_precision("highest")


def test_saved_features_come_back_and_know_their_encoder(tmp_path):
    found = extracted(make_shard_set(tmp_path / "shards", 4))
    path = tmp_path / "features.safetensors"
    save_features(found, path, encoder="abc", shards="def")
    back = load_features(path, encoder="abc", shards="def")
    np.testing.assert_array_equal(back.features.images, found.features.images)
    np.testing.assert_array_equal(back.captions, found.captions)
    assert back.logit_scale == 10
    with pytest.raises(DataError, match=r"its encoder is abc, xyz is needed"):
        load_features(path, encoder="xyz")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DamagedError, match="no whole feature file"):
        load_features(path)


def test_a_sample_read_twice_is_an_error(tmp_path):
    shard_set = ShardSet.open(make_shard_set(tmp_path, 4))
    twice = [*EvalLoader(shard_set, batch_size=2), *EvalLoader(shard_set, batch_size=4)]
    with pytest.raises(DataError, match=r"8 samples were read, 4 of them distinct; the set has 4"):
        extract(PixelModel(), normalize, shard_set, twice, logit_scale=1.0, device=CPU)


def test_pictures_alone_need_no_captions_and_may_be_some_of_the_set(tmp_path):
    shard_set = ShardSet.open(make_shard_set(tmp_path, 9, samples_per_shard=4))
    with_captions = extract(
        PixelModel(), normalize, shard_set, EvalLoader(shard_set, batch_size=4), logit_scale=1.0, device=CPU
    )
    whole = extract_pictures(
        PixelModel(), normalize, shard_set, EvalLoader(shard_set, batch_size=4, columns={}), device=CPU
    )
    np.testing.assert_array_equal(whole.images, with_captions.features.images)
    some = np.array([1, 4, 8])
    loader = EvalLoader(shard_set, batch_size=2, samples=some, columns={})
    found = extract_pictures(PixelModel(), normalize, shard_set, loader, some, device=CPU)
    assert found.samples.tolist() == [1, 4, 8]
    np.testing.assert_array_equal(found.images, whole.images[some])


def some_in_a_group(url, some):
    shard_set = ShardSet.open(url)
    loader = EvalLoader(shard_set, batch_size=2, samples=some, columns={}, rank=rank(), world_size=world_size())
    found = extract_pictures(PixelModel(), normalize, shard_set, loader, some, device=CPU)
    return found.images, found.samples


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_number_of_ranks_gathers_the_same_pictures(tmp_path, ranks):
    url, some = make_shard_set(tmp_path, 9), np.array([2, 7])  # of three ranks one has none
    images, samples = some_in_a_group(url, some)
    for theirs, their_samples in gloo.run(ranks, some_in_a_group, url, some):
        np.testing.assert_allclose(theirs, images, atol=1e-6)
        assert their_samples.tolist() == samples.tolist()


def test_a_damaged_gallery_picture_gives_way_to_another_where_that_is_allowed(tmp_path):
    url, some = make_shard_set(tmp_path, 9), np.array([2, 5])
    damage(url, 2)
    shard_set = ShardSet.open(url)
    loader = EvalLoader(shard_set, batch_size=2, samples=some, columns={}, max_damaged=1)
    assert extract_pictures(PixelModel(), normalize, shard_set, loader, some, device=CPU).samples.tolist() == [3, 5]
    with pytest.raises(DamagedError):
        list(EvalLoader(shard_set, batch_size=2, samples=some, columns={}))


def test_features_of_pictures_alone_are_saved_and_say_so(tmp_path):
    shard_set = ShardSet.open(make_shard_set(tmp_path / "set", 5))
    found = extract_pictures(
        PixelModel(), normalize, shard_set, EvalLoader(shard_set, batch_size=4, columns={}), device=CPU
    )
    save_features(found, tmp_path / "f.safetensors", encoder="a", shards="b")
    with pytest.raises(DataError, match="holds features of pictures alone"):
        load_features(tmp_path / "f.safetensors")


@pytest.mark.parametrize(
    ("name", "has_one"), [("infonce", True), ("siglip", True), ("nt_xent", False), ("supcon", False)]
)
def test_only_objectives_of_pictures_and_captions_have_a_validation_loss(name, has_one):
    assert has_pair_loss(OBJECTIVES[name]()) is has_one


class ReusedBatches:
    """A loader whose workers write a batch's memory again as soon as the next batch is asked for."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        buffer = None
        for batch in self.loader:
            buffer = torch.empty_like(batch.images) if buffer is None else buffer
            rows = buffer[: len(batch.images)]
            rows.copy_(batch.images)
            yield replace(batch, images=rows)
            buffer.zero_()


def test_a_copy_that_is_late_is_waited_for(tmp_path, monkeypatch):
    """On a device whose copies in the background arrive late, features are still those of their own pictures."""
    shard_set = ShardSet.open(make_shard_set(tmp_path, 12))
    expected = extract_pictures(PixelModel(), normalize, shard_set, EvalLoader(shard_set, batch_size=4), device=CPU)
    real = torch.Tensor.to

    def late(tensor, *arguments, **options):
        if options.get("non_blocking") and tensor.dtype == torch.uint8:
            return torch.zeros_like(tensor)  # nothing has arrived yet
        return real(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", late)
    batches = ReusedBatches(EvalLoader(shard_set, batch_size=4))
    found = extract_pictures(PixelModel(), normalize, shard_set, batches, device=CPU)
    np.testing.assert_array_equal(found.images, expected.images)


@pytest.mark.gpu
def test_workers_do_not_write_what_a_gpu_has_not_copied_yet(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    shard_set = ShardSet.open(make_shard_set(tmp_path, 60, size=64))
    expected = extract_pictures(PixelModel(), normalize, shard_set, EvalLoader(shard_set, batch_size=4), device=CPU)

    class Slow(PixelModel):
        def image_features(self, images):
            torch.cuda._sleep(50_000_000)  # the device falls behind the host
            return super().image_features(images)

    loader = EvalLoader(shard_set, batch_size=4, num_workers=2, pin_memory=True)
    for _ in range(3):
        found = extract_pictures(Slow(), normalize, shard_set, loader, device=device)
        np.testing.assert_allclose(found.images, expected.images, atol=1e-5)
    loader.close()
