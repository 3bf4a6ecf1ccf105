"""Augmentation against torchvision's own transforms, one picture at a time, and its laws of reproducibility."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from core.errors import ConfigError
from core.seeding import uniform
from trainer.pictures.augment import Augment, Normalize
from trainer.pictures.colours import colour_maps, colour_space, hue_rotation
from trainer.pictures.config import AugmentConfig
from trainer.pictures.draw import BOX, COLOURS, FLIP, SIGMA, Draw, draw
from trainer.pictures.normalization import CLIP, HALF, NORMALIZATIONS

HOST = torch.device("cpu")
STILL = AugmentConfig(crop_scale=(1, 1), crop_ratio=(1, 1), flip=0)
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # no normalisation: pictures in 0..1
LEVEL = 1 / 255


def pictures(batch: int, size: int, seed: int = 0) -> Tensor:
    """Smooth random pictures as the loader gives them: a channels-last uint8 view of one NHWC buffer."""
    coarse = torch.rand(batch, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    smooth = tv.resize(coarse, [size, size], antialias=True)
    noise = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed + 1)) * 0.3
    buffer = ((smooth * 0.7 + noise) * 255).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return buffer.permute(0, 3, 1, 2)


def drawn(config: AugmentConfig, batch: int, size: int, epoch: int = 1) -> Draw:
    return draw(config, 7, epoch, np.arange(batch), size, size)


def mapped(config: AugmentConfig, parameters: Draw) -> Tensor:
    """The maps `(B, 3, 4)` of colours that were drawn."""
    assert parameters.changes_colours
    return colour_maps(config, torch.from_numpy(parameters.numbers[:, COLOURS]), colour_space(HOST))


def turned(angles: Sequence[float] | np.ndarray) -> np.ndarray:
    """The turns `(B, 3, 3)` of hue."""
    return hue_rotation(torch.tensor(angles, dtype=torch.float64), colour_space(HOST)).numpy()


def augmented(config: AugmentConfig, images: Tensor, size: int, epoch: int = 1) -> Tensor:
    return Augment(config, size, *UNIT, seed=7)(images, epoch, np.arange(len(images)))


@pytest.mark.parametrize(("stored", "size"), [(40, 40), (64, 40), (40, 56), (65, 24)])
def test_crops_and_flips_equal_torchvisions_antialiased_resized_crop(stored: int, size: int) -> None:
    config, images = AugmentConfig(crop_scale=(0.2, 1.0)), pictures(12, stored)
    result, numbers = augmented(config, images, size), drawn(config, 12, stored).numbers
    assert 0 < numbers[:, FLIP].sum() < 12
    for i in range(12):
        top, left, height, width = (int(v) for v in numbers[i, BOX])
        expected = tv.resized_crop(images[i].float(), top, left, height, width, [size, size], antialias=True)
        expected = tv.horizontal_flip(expected) if numbers[i, FLIP] else expected
        torch.testing.assert_close(result[i] * 255, expected, atol=1e-3, rtol=0)


def test_blur_equals_torchvisions_gaussian_blur_of_the_cropped_picture() -> None:
    config, images = AugmentConfig(blur=0.6, blur_sigma=(0.3, 2.0)), pictures(10, 48)
    result, sigma = augmented(config, images, 40), drawn(config, 10, 48).numbers[:, SIGMA]
    assert 0 < (sigma > 0).sum() < 10
    unblurred = augmented(AugmentConfig(), images, 40)
    for i in range(10):
        expected = unblurred[i]
        if sigma[i] > 0:
            expected = tv.gaussian_blur(expected, [13, 13], [float(sigma[i])])
            assert (expected - unblurred[i]).abs().max() > LEVEL
        torch.testing.assert_close(result[i], expected, atol=0.01 * LEVEL, rtol=0)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_change_of_colour_equals_torchvisions(name: str) -> None:
    strengths = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0) | {name: 0.5}
    config = AugmentConfig(crop_scale=(1, 1), flip=0, jitter=1, **strengths)
    images = pictures(8, 32)
    result = augmented(config, images, 32)
    factors = _factors(8)[{"brightness": 1, "contrast": 2, "saturation": 3}[name]]
    adjust = getattr(tv, f"adjust_{name}")
    for i in range(8):
        expected = adjust(images[i].float() / 255, 0.5 + float(factors[i]))
        torch.testing.assert_close(result[i], expected, atol=0.2 * LEVEL, rtol=0)


def test_composed_colours_equal_the_steps_one_after_another_where_nothing_is_clipped() -> None:
    config = AugmentConfig(crop_scale=(1, 1), flip=0, jitter=0.7, hue=0.2, grayscale=0.4)
    images = (pictures(48, 16).float() * 0.2 + 100).to(torch.uint8)
    result, u = augmented(config, images, 16), _factors(48)
    seen = set()
    for i in range(48):
        expected, jittered, grey = images[i].double() / 255, bool(u[0, i] < 0.7), bool(u[5, i] < 0.4)
        seen.add((jittered, grey))
        if jittered:
            for column, adjust in ((1, tv.adjust_brightness), (2, tv.adjust_contrast), (3, tv.adjust_saturation)):
                expected = adjust(expected, 0.6 + 0.8 * float(u[column, i]))
            turn = turned([2 * np.pi * 0.2 * (2 * u[4, i] - 1)])[0]
            expected = torch.einsum("ij,jhw->ihw", torch.from_numpy(turn), expected)
        if grey:
            expected = tv.rgb_to_grayscale(expected, num_output_channels=3)
        torch.testing.assert_close(result[i].double(), expected, atol=0.02 * LEVEL, rtol=0)
    assert len(seen) == 4


def test_hue_turns_chroma_and_keeps_luma() -> None:
    turn = turned([0.0, np.pi / 3, np.pi])
    colour, luma = np.array([0.8, 0.3, 0.1]), np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(turn[0], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(turn @ colour @ luma, colour @ luma, atol=1e-3)
    np.testing.assert_allclose(turn[2] @ turn[2], np.eye(3), atol=1e-9)
    np.testing.assert_allclose(turn @ np.full(3, 0.4), 0.4, atol=1e-3)  # grey has no hue


def test_hue_is_a_rotation_of_the_chroma_by_the_angle() -> None:
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])  # FCC, 1953
    angles = np.linspace(-3, 3, 13)
    for angle, turn in zip(angles, turned(angles)):
        for colour in np.eye(3):
            luma, i, q = to_yiq @ colour
            chroma = complex(i, q) * np.exp(1j * angle)
            np.testing.assert_allclose(to_yiq @ turn @ colour, [luma, chroma.real, chroma.imag], atol=1e-9)


def test_a_picture_does_not_depend_on_the_rest_of_its_batch() -> None:
    config = AugmentConfig(jitter=0.8, grayscale=0.2, blur=0.5)
    images, samples = pictures(9, 32), np.array([5, 900, 3, 77, 12, 2**40, 0, 8, 41])
    augment = Augment(config, 24, *CLIP, seed=3)
    together = augment(images, 2, samples)
    for rows in ([0], [8, 1, 4], [2, 3, 5, 6, 7]):
        assert torch.equal(augment(images[rows], 2, torch.from_numpy(samples[rows])), together[rows])


def test_the_whole_batch_at_once_gives_what_picture_by_picture_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AugmentConfig(jitter=0.8, grayscale=0.2, blur=0.5)
    images, samples = pictures(6, 40), np.arange(6)
    expected = Augment(config, 24, *CLIP, seed=3)(images, 1, samples)
    monkeypatch.setattr("trainer.pictures.augment._images_at_once", lambda device: 256)  # as on a GPU
    torch.testing.assert_close(Augment(config, 24, *CLIP, seed=3)(images, 1, samples), expected, atol=1e-5, rtol=0)


def test_blocks_of_pictures_change_none(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AugmentConfig(jitter=0.8, grayscale=0.2, blur=0.5)
    images, samples = pictures(9, 40), np.arange(9)
    expected = Augment(config, 24, *CLIP, seed=3)(images, 1, samples)
    monkeypatch.setattr("trainer.pictures.augment._BLOCK", 4)
    assert torch.equal(Augment(config, 24, *CLIP, seed=3)(images, 1, samples), expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pictures_of_a_shorter_type_are_the_float32_ones_rounded(dtype: torch.dtype, channels_last: bool) -> None:
    config, images, samples = AugmentConfig(jitter=0.8), pictures(5, 40), np.arange(5)
    whole = Augment(config, 24, *CLIP, seed=3, channels_last=channels_last)(images, 1, samples)
    short = Augment(config, 24, *CLIP, seed=3, channels_last=channels_last, dtype=dtype)(images, 1, samples)
    assert short.dtype == dtype and short.stride() == whole.stride()
    assert torch.equal(short, whole.to(dtype))


def test_epochs_seeds_and_samples_each_change_the_picture() -> None:
    images = pictures(1, 32).expand(3, -1, -1, -1)
    one = Augment(AugmentConfig(), 32, *CLIP, seed=0)
    first = one(images, 0, np.arange(3))
    assert torch.equal(first, one(images, 0, np.arange(3)))
    assert not torch.equal(first, one(images, 1, np.arange(3)))
    assert not torch.equal(first, Augment(AugmentConfig(), 32, *CLIP, seed=1)(images, 0, np.arange(3)))
    assert not torch.equal(first[0], first[1])
    second_view = one(images, 0, np.arange(3), view=1)
    assert all(not torch.equal(a, b) for a, b in zip(first, second_view))
    assert torch.equal(second_view, one(images, 0, np.arange(3), view=1))


def test_crops_keep_the_asked_share_and_shape_and_reach_every_corner() -> None:
    numbers = draw(AugmentConfig(), 0, 0, np.arange(20_000), 224, 224).numbers
    top, left, height, width = numbers[:, BOX].T.astype(np.float64)
    share, ratio = height * width / 224**2, width / height
    assert 0.49 < share.min() < 0.51 and 0.98 < share.max() <= 1.0
    assert 0.745 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.345
    assert top.min() == left.min() == 0
    assert (top + height).max() == (left + width).max() == 224
    assert ((top + height) <= 224).all() and ((left + width) <= 224).all()


@pytest.mark.parametrize(
    ("scale", "ratio", "height", "width"),
    [((0.5, 1.0), (0.75, 4 / 3), 224, 224), ((0.05, 1.0), (0.3, 3.0), 5, 7), ((0.9, 1.0), (0.5, 3.0), 40, 60)],
)
def test_crops_are_the_first_attempt_that_fits_placed_by_numbers_of_their_own(
    scale: tuple[float, float], ratio: tuple[float, float], height: int, width: int
) -> None:
    """torchvision's `RandomResizedCrop.get_params` with our numbers: ten areas, ten shapes, then top and left."""
    drawn = draw(AugmentConfig(crop_scale=scale, crop_ratio=ratio), 3, 4, np.arange(300), height, width)
    numbers = uniform(3, 4, np.arange(300), "crop", 22).astype(np.float64)
    sizes, fallbacks = set(), 0
    for box, u in zip(drawn.numbers[:, BOX].tolist(), numbers):
        for attempt in range(10):
            area = height * width * (scale[0] + (scale[1] - scale[0]) * u[attempt])
            shape = np.exp(np.log(ratio[0]) + (np.log(ratio[1]) - np.log(ratio[0])) * u[10 + attempt])
            w, h = round(np.sqrt(area * shape)), round(np.sqrt(area / shape))
            if 0 < w <= width and 0 < h <= height:
                break
        else:
            w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
            fallbacks += 1
        sizes.add((h, w))
        assert box == [np.floor(u[20] * (height - h + 1)), np.floor(u[21] * (width - w + 1)), h, w]
    if width == 7:
        assert {1, height} <= {h for h, _ in sizes} and {1, width} <= {w for _, w in sizes}
    assert (fallbacks > 0) == (height == 40)


def test_impossible_crops_fall_back_to_the_largest_allowed_box() -> None:
    drawn = draw(AugmentConfig(crop_scale=(1, 1), crop_ratio=(2, 2)), 0, 0, np.arange(50), 60, 60)
    assert (drawn.numbers[:, BOX][:, 2:] == (30, 60)).all()


def test_share_of_flipped_grey_and_blurred_pictures_is_the_probability() -> None:
    config = AugmentConfig(flip=0.3, blur=0.2, grayscale=0.1)
    parameters = draw(config, 5, 3, np.arange(20_000), 32, 32)
    maps = mapped(config, parameters)
    assert abs(parameters.numbers[:, FLIP].mean() - 0.3) < 0.015
    assert abs(parameters.blurs().mean() - 0.2) < 0.015
    grey = (maps[:, 0] == maps[:, 1]).all(dim=1)
    assert abs(grey.float().mean() - 0.1) < 0.015


def test_only_a_still_config_leaves_pictures_as_they_are() -> None:
    assert not STILL.changes_pictures
    for change in ({"crop_scale": (0.9, 1)}, {"flip": 0.1}, {"jitter": 0.1}, {"grayscale": 0.1}, {"blur": 0.1}):
        assert replace(STILL, **change).changes_pictures


def test_what_has_probability_0_never_happens_and_what_has_1_always(monkeypatch: pytest.MonkeyPatch) -> None:
    almost_1 = np.float32(1 - 2.0**-24)
    for number in (np.float32(0), almost_1):
        monkeypatch.setattr(
            "trainer.pictures.draw.uniform", lambda *key, number=number: np.full((len(key[2]), key[4]), number)
        )
        config = AugmentConfig(flip=0, blur=0, jitter=0, grayscale=1)
        never = draw(config, 0, 0, np.arange(4), 32, 32)
        assert not never.numbers[:, FLIP].any() and not never.numbers[:, SIGMA].any()
        assert (mapped(config, never) == torch.tensor([0.2989, 0.587, 0.114, 0])).all()  # grey alone, and always
        config = AugmentConfig(flip=1, blur=1, jitter=1, grayscale=0)
        always = draw(config, 0, 0, np.arange(4), 32, 32)
        assert always.numbers[:, FLIP].all() and always.blurs().all()
        maps = mapped(config, always)
        assert not (maps[:, 0] == maps[:, 1]).all(dim=1).any()  # not grey
        assert not (maps == torch.eye(3, 4)).all(dim=2).any()


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_still_picture_is_only_normalised(channels_last: bool) -> None:
    images = pictures(5, 32)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    mean, std = (torch.tensor(v)[:, None, None] for v in CLIP)
    expected = (images.float() / 255 - mean) / std
    trained = Augment(STILL, 32, *CLIP, seed=0, channels_last=channels_last)(images, 0, np.arange(5))
    evaluated = Normalize(32, *CLIP, channels_last=channels_last)(images)
    assert torch.equal(trained, evaluated)
    assert evaluated.dtype == torch.float32 and evaluated.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(evaluated, expected, atol=1e-5, rtol=0)


def test_evaluation_resizes_stored_pictures_like_torchvision() -> None:
    images = pictures(3, 64)
    expected = tv.normalize(tv.resize(images.float(), [24, 24], antialias=True) / 255, *map(list, HALF))
    torch.testing.assert_close(Normalize(24, *HALF)(images), expected, atol=1e-4, rtol=0)


def test_contiguous_pictures_give_what_channels_last_pictures_give() -> None:
    images = pictures(4, 32)
    assert torch.equal(augmented(AugmentConfig(), images, 24), augmented(AugmentConfig(), images.contiguous(), 24))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": -0.1}, r"augment\.flip is -0\.1: it is a probability"),
        ({"crop_ratio": (0, 1)}, r"augment\.crop_ratio is \(0, 1\): give 0 < smallest <= largest"),
        ({"flip": 1.5}, r"augment\.flip is 1\.5: it is a probability"),
        ({"crop_scale": (0.8, 0.5)}, r"augment\.crop_scale is \(0\.8, 0\.5\): give 0 < smallest <= largest"),
        ({"crop_scale": (0.5, 1.2)}, r"crop_scale ends at 1\.2: a crop keeps at most 1"),
        ({"hue": 0.7}, r"augment\.hue is 0\.7: give a number from 0 to 0\.5"),
        ({"contrast": -1.0}, r"augment\.contrast is -1\.0"),
    ],
)
def test_impossible_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**options)


def test_normalizations_are_the_published_ones() -> None:
    from torchvision.models import ResNet50_Weights

    transforms = ResNet50_Weights.IMAGENET1K_V2.transforms()
    assert NORMALIZATIONS["imagenet"] == (tuple(transforms.mean), tuple(transforms.std))


def _factors(batch: int) -> np.ndarray:
    return uniform(7, 1, np.arange(batch), "colour", 6).T.astype(np.float64)
