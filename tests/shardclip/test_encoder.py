"""`shardclip.load`: every kind of picture becomes what evaluation sees of a stored one; texts what captions became."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from saved_runs import write_run
from torchvision.transforms import ToTensor

import shardclip
from core.config import Choice
from core.errors import CheckpointError, ConfigError, DataError, StorageError
from core.parts import build
from core.shard_index import IMAGE
from core.shard_set import ShardSet
from core.text_encoders import TEXT_ENCODERS
from eval.encoder import load_encoder
from eval.features import extract_pictures
from trainer.data.loader import EvalLoader

SEEN = 24  # pixels that the tower sees; the sets have 32
CPU = torch.device("cpu")


def features_of_eval(run: Path, url: str) -> np.ndarray:
    """What `shardclip eval` computes from the stored pictures, in the order of the samples."""
    loaded, shard_set = load_encoder(run, CPU), ShardSet.open(url, text="")
    loader = EvalLoader(shard_set, batch_size=64, columns={})
    return extract_pictures(loaded.model, loaded.normalize, shard_set, loader, device=CPU).images


def files_of(url: str, photos: Path) -> list[Path]:
    """The photo of each sample."""
    shard_set = ShardSet.open(url, text="")
    return [photos / shard_set.info(sample)["image_id"] for sample in range(len(shard_set))]


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_a_file_is_encoded_as_eval_encodes_its_sample(
    tmp_path: Path, photos: Path, build_set: Callable[..., str], fit: str
) -> None:
    url = build_set(fit, "raw")  # no loss: nothing but the same picture gives the same features
    run = write_run(tmp_path / "run", size=SEEN, stored=32, fit=fit)
    files = files_of(url, photos)
    expected = features_of_eval(run, url)
    found = shardclip.load(run, device="cpu").encode_image(files)
    assert found.dtype == np.float32 and found.shape == (len(files), 8)
    np.testing.assert_array_equal(found, expected)
    others = {
        other: write_run(tmp_path / other, size=SEEN, stored=32, fit=other)
        for other in ("crop", "squash", "pad")
        if other != fit
    }
    for other in others.values():  # the features can tell one fit from another
        assert np.abs(shardclip.load(other, device="cpu").encode_image(files) - expected).max() > 1e-3


def test_a_jpeg_set_differs_by_its_jpegs_loss_and_its_stored_bytes_by_nothing(
    tmp_path: Path, photos: Path, build_set: Callable[..., str]
) -> None:
    url, run = build_set("crop", "jpeg"), write_run(tmp_path / "run", size=SEEN, stored=32)
    encoder, expected = shardclip.load(run, device="cpu"), features_of_eval(run, url)
    shard_set = ShardSet.open(url, text="")
    stored = [bytes(shard_set.member(sample, IMAGE)) for sample in range(len(shard_set))]
    np.testing.assert_array_equal(encoder.encode_image(stored), expected)
    lost = np.abs(encoder.encode_image(files_of(url, photos)) - expected).max()
    assert 0 < lost < 0.02


def test_every_way_to_hand_over_a_picture_gives_the_same_features(tmp_path: Path, photos: Path) -> None:
    encoder = shardclip.load(write_run(tmp_path / "run", size=SEEN, stored=32), device="cpu")
    image = Image.open(sorted(photos.glob("*.jpg"))[0]).convert("RGB")
    png = io.BytesIO()
    image.save(png, "PNG")
    (tmp_path / "a.png").write_bytes(png.getvalue())
    height_width = np.asarray(image)
    to_tensor = ToTensor()(image)
    ways = {
        "path": tmp_path / "a.png",
        "text": str(tmp_path / "a.png"),
        "bytes": png.getvalue(),
        "PIL": image,
        "uint8 (H, W, 3)": height_width,
        "uint8 (3, H, W)": torch.from_numpy(height_width.copy()).permute(2, 0, 1),
        "ToTensor": to_tensor,
        "float numpy": to_tensor.numpy(),
        "half": to_tensor.half(),
        "double": to_tensor.double(),
        "batch": to_tensor[None],
    }
    expected = encoder.encode_image(image)
    assert expected.shape == (1, 8) and np.linalg.norm(expected) == pytest.approx(1, abs=1e-6)
    for name, picture in ways.items():
        np.testing.assert_array_equal(encoder.encode_image(picture), expected, err_msg=name)
    together = encoder.encode_image(list(ways.values())[:-1])
    np.testing.assert_allclose(together, np.repeat(expected, len(ways) - 1, 0), atol=1e-6)
    assert encoder.encode_image([]).shape == (0, 8)


def test_bfloat16_is_as_the_same_values_in_float32(tmp_path: Path) -> None:
    encoder = shardclip.load(write_run(tmp_path / "run", size=SEEN, stored=32), device="cpu")
    picture = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    np.testing.assert_array_equal(encoder.encode_image(picture), encoder.encode_image(picture.float()))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("is_turned", [False, True])
def test_a_large_jpeg_that_is_open_is_encoded_as_its_file(tmp_path: Path, mode: str, is_turned: bool) -> None:
    encoder = shardclip.load(write_run(tmp_path / "run", size=SEEN, stored=32), device="cpu")
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)  # more than eight times 32
    exif = Image.Exif()
    exif[0x0112] = 6 if is_turned else 1
    path = tmp_path / "large.jpg"
    Image.fromarray(noise).convert(mode).save(path, quality=95, exif=exif)
    expected = encoder.encode_image(path)
    opened = Image.open(path)
    np.testing.assert_array_equal(encoder.encode_image(opened), expected)
    assert opened.size == (400, 300)  # it is the caller's: nothing was done to it
    whole = np.asarray(opened)
    np.testing.assert_array_equal(whole, np.asarray(Image.open(path)))
    decoded = encoder.encode_image(opened)  # all its pixels, since they are there now
    assert np.abs(decoded - expected).max() > 0
    with open(path, "rb") as file:
        np.testing.assert_array_equal(encoder.encode_image(Image.open(file)), expected)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="picture 0: truncated"):
        encoder.encode_image(Image.open(path))


def test_a_turned_photograph_is_stood_upright(tmp_path: Path, photos: Path) -> None:
    encoder = shardclip.load(write_run(tmp_path / "run", size=SEEN, stored=32, fit="squash"), device="cpu")
    image = Image.open(sorted(photos.glob("*.jpg"))[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    expected = encoder.encode_image(image)
    for turned in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        np.testing.assert_array_equal(encoder.encode_image(turned), expected)


def test_many_pictures_go_in_batches(tmp_path: Path, photos: Path) -> None:
    run, files = write_run(tmp_path / "run", size=SEEN, stored=32), sorted(photos.glob("*.jpg"))
    one, all_at_once = (shardclip.load(run, device="cpu", batch_size=n).encode_image(files) for n in (4, 64))
    np.testing.assert_allclose(one, all_at_once, atol=1e-6)


@pytest.mark.parametrize(
    ("picture", "error", "sentence"),
    [
        (np.full((20, 20, 3), 1.5, np.float32), DataError, "picture 1: holds floats from 1.5 to 1.5, outside 0 to 1"),
        (torch.full((3, 20, 20), -0.1), DataError, "outside 0 to 1"),
        (np.full((20, 20, 3), np.nan, np.float32), DataError, "outside 0 to 1"),
        (np.zeros((20, 20, 3), np.int64), DataError, "picture 1: holds int64"),
        (np.zeros((20, 20, 4), np.uint8), DataError, "has the shape (20, 20, 4)"),
        (np.zeros((4, 4, 3), np.uint8), DataError, "too_small"),
        (b"<html>", DataError, "picture 1: unreadable"),
        ("nowhere/dog.jpg", StorageError, "nowhere/dog.jpg: no such file"),
        (7, DataError, "picture 1: is a int, not a PIL image, a path"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(
    tmp_path: Path, picture: object, error: type[Exception], sentence: str
) -> None:
    encoder = shardclip.load(write_run(tmp_path / "run", size=SEEN, stored=32), device="cpu")
    with pytest.raises(error) as raised:
        encoder.encode_image([np.zeros((20, 20, 3), np.uint8), picture])  # type: ignore[list-item]
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_texts_are_encoded_as_the_builder_embeds_captions(tmp_path: Path) -> None:
    frozen = build(TEXT_ENCODERS, Choice("minilm"), "text_encoder")
    encoder = shardclip.load(write_run(tmp_path / "run", text_encoder=frozen.spec), device="cpu")
    texts = ["a dog on a beach", "two red cars", "a dog on a beach"]
    vectors = encoder.encode_text(texts)
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    ids = frozen.tokenize([texts[1]])[0]
    alone = frozen.embed(torch.tensor(ids), [len(ids)]).numpy()
    np.testing.assert_allclose(vectors[1], alone[0], atol=1e-3)
    np.testing.assert_array_equal(encoder.encode_text("two red cars"), vectors[1:2])
    images = encoder.encode_image(np.zeros((40, 40, 3), np.uint8))
    similarity = encoder.similarity(images, vectors)
    assert similarity.shape == (1, 3) and similarity.dtype == np.float32
    np.testing.assert_allclose(similarity[0], [float(images[0] @ row) for row in vectors], atol=1e-6)
    assert encoder.encode_text([]).shape == (0, 384)
    with pytest.raises(DataError, match="there is a int in it"):
        encoder.encode_text(["a", 3])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"texts is \(3, 7\)"):
        encoder.similarity(images, vectors[:, :7])


def test_an_encoder_of_pictures_alone_says_so_and_keeps_no_head(tmp_path: Path) -> None:
    encoder = shardclip.load(write_run(tmp_path / "run", objective="nt_xent"), device="cpu")
    assert encoder.encode_image(np.zeros((40, 40, 3), np.uint8)).shape == (1, encoder.embed_dim) == (1, 16)
    with pytest.raises(ConfigError, match="trained without captions, so it encodes no text"):
        encoder.encode_text("a dog")


def test_a_checkpoint_and_an_older_run_are_loaded(tmp_path: Path, build_set: Callable[..., str]) -> None:
    run = write_run(tmp_path / "run", size=SEEN, stored=32)
    picture = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    expected = shardclip.load(run, device="cpu").encode_image(picture)
    for place in (str(run), run / "best", run / "latest", run / "checkpoints" / "step-00000003"):
        np.testing.assert_array_equal(shardclip.load(place, device="cpu").encode_image(picture), expected)
    config = {"image_size": SEEN, "data": {"train": [build_set()]}}
    older = write_run(tmp_path / "older", size=SEEN, config=config)
    np.testing.assert_array_equal(shardclip.load(older, device="cpu").encode_image(picture), expected)
    config["data"]["train"] = ["nowhere/train"]  # type: ignore[index]
    with pytest.raises(CheckpointError, match="nowhere/train is not there to ask"):
        shardclip.load(write_run(tmp_path / "lost", size=SEEN, config=config), device="cpu")
    with pytest.raises(ConfigError, match="device is 'gpu'"):
        shardclip.load(run, device="gpu")
