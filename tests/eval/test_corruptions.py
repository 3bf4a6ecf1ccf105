"""Corruptions against the published formulas, written out slowly; and the same pixels for any batch."""

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from smooth_photos import photo

from eval.corruptions import CORRUPTIONS, SEVERITIES, corrupt, gaussian_kernel, resized_kernel

# Constants of make_imagenet_c.py at severities 1 to 5, written down a second time.
NOISE_DEVIATION = (0.08, 0.12, 0.18, 0.26, 0.38)
PHOTONS = (60, 25, 12, 5, 3)
SALT_AND_PEPPER = (0.03, 0.06, 0.09, 0.17, 0.27)
BLUR_SIGMA = (1, 2, 3, 4, 6)
DISK = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
QUALITY = (25, 18, 15, 10, 7)
PIXELS_LEFT = (0.6, 0.5, 0.4, 0.3, 0.25)
COVERED = (0.05, 0.1, 0.2, 0.3, 0.4)  # ours
DRAWN = ("gaussian_noise", "shot_noise", "impulse_noise", "occlusion")


def corrupted(picture, name, severity, **options):
    return corrupt(torch.from_numpy(picture)[None], np.array([7]), name, severity, **options)[0].numpy()


def expect_levels(found, wanted):
    """Fractions are cut off; where rounding could make a whole level of it or not, either will do."""
    wanted = np.clip(wanted, 0, 255)
    assert (found >= np.floor(wanted - 1e-5)).all() and (found <= np.floor(wanted + 1e-5)).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_moves_levels_towards_the_mean_of_their_channel(severity):
    picture = photo(40)
    means = picture.mean(axis=(1, 2), keepdims=True)
    expect_levels(corrupted(picture, "contrast", severity), (picture - means) * CONTRAST[severity - 1] + means)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_adds_to_the_value_of_hsv(severity):
    picture = photo(24)

    def brighter(rgb):
        hue, saturation, value = colorsys.rgb_to_hsv(*(rgb / 255))
        return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + BRIGHTNESS[severity - 1], 1.0)))

    expect_levels(corrupted(picture, "brightness", severity), np.apply_along_axis(brighter, 0, picture.astype(float)))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_blur_is_that_of_scipy(severity):
    picture, sigma = photo(224), BLUR_SIGMA[severity - 1]
    wanted = [ndimage.gaussian_filter(c.astype(float), sigma, mode="nearest", truncate=4) for c in picture]
    expect_levels(corrupted(picture, "gaussian_blur", severity), np.stack(wanted))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_blur_is_a_disk_with_a_softened_rim(severity):
    picture, (radius, softness) = photo(224), DISK[severity - 1]
    half = max(8, radius)
    disk = np.array([[x * x + y * y <= radius**2 for x in range(-half, half + 1)] for y in range(-half, half + 1)])
    reach = 1 if radius <= 8 else 2
    bell = np.array([math.exp(-(i**2) / (2 * softness**2)) for i in range(-reach, reach + 1)])
    kernel = disk / disk.sum()
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, bell / bell.sum(), axis, mode="mirror")
    wanted = [ndimage.correlate(channel.astype(float), kernel, mode="mirror") for channel in picture]
    expect_levels(corrupted(picture, "defocus_blur", severity), np.stack(wanted))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_and_pixels_are_those_of_pil(severity):
    picture = photo(50)
    image, stored = Image.fromarray(picture.transpose(1, 2, 0)), io.BytesIO()
    image.save(stored, "JPEG", quality=QUALITY[severity - 1])
    wanted = np.asarray(Image.open(stored)).transpose(2, 0, 1)
    assert np.array_equal(corrupted(picture, "jpeg_compression", severity), wanted)
    small = image.resize((int(50 * PIXELS_LEFT[severity - 1]),) * 2, Image.Resampling.BOX)
    wanted = np.asarray(small.resize((50, 50), Image.Resampling.BOX)).transpose(2, 0, 1)
    assert np.array_equal(corrupted(picture, "pixelate", severity), wanted)


def shares_of_levels(name, severity, level):
    """`(256,)` what share of the pixels of one level comes to be which level."""
    i, ks = severity - 1, np.arange(256)
    if name == "gaussian_noise":
        ends = stats.norm.cdf((np.arange(1, 257) - level) / (255 * NOISE_DEVIATION[i]))
        ends[-1] = 1  # clipped to 255
        return np.diff(ends, prepend=0)
    if name == "impulse_noise":
        changed = SALT_AND_PEPPER[i]
        return np.where(ks == level, 1 - changed, np.where((ks == 0) | (ks == 255), changed / 2, 0))
    photons, shares = PHOTONS[i], np.zeros(256)
    for count in range(photons):
        shares[int(count * 255 / photons + 1e-9)] += stats.poisson.pmf(count, level / 255 * photons)
    shares[255] += stats.poisson.sf(photons - 1, level / 255 * photons)
    return shares


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise"])
def test_noise_has_its_published_distribution(name, severity):
    for level in (40, 150):
        found = corrupted(np.full((3, 128, 128), level, dtype=np.uint8), name, severity)
        counts, wanted = np.bincount(found.ravel(), minlength=256), shares_of_levels(name, severity, level)
        assert not counts[wanted < 1e-12].any()
        first, second = (np.sum(wanted * np.arange(256.0) ** power) for power in (1, 2))
        error = math.sqrt((second - first**2) / found.size)
        assert abs(found.mean() - first) < 5 * error
        fourth = np.sum(wanted * (np.arange(256) - first) ** 4)
        error = math.sqrt((fourth - (second - first**2) ** 2) / found.size)
        assert abs(np.mean((found - first) ** 2) - (second - first**2)) < 5 * error
        channels = found.reshape(3, -1) - found.mean()
        assert np.abs(np.corrcoef(channels)[np.triu_indices(3, 1)]).max() < 0.05  # each channel by itself


@pytest.mark.parametrize("severity", SEVERITIES)
def test_occlusion_covers_its_share_with_grey_and_leaves_the_rest(severity):
    pictures, places = torch.full((60, 3, 64, 64), 200, dtype=torch.uint8), set()
    for picture in corrupt(pictures, np.arange(60), "occlusion", severity).numpy():
        assert set(np.unique(picture)) == {127, 200} and (picture == picture[:1]).all()
        rows, columns = np.nonzero(picture[0] == 127)
        side = round(64 * math.sqrt(COVERED[severity - 1]))
        assert len(rows) == side**2 and np.ptp(rows) == np.ptp(columns) == side - 1
        places.add((rows[0], columns[0]))
    assert len(places) > 50
    tops, lefts = zip(*places, strict=True)
    assert min(tops) <= 3 and min(lefts) <= 3 and max(tops) >= 61 - side and max(lefts) >= 61 - side


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_pixels_depend_on_the_sample_and_not_on_its_batch(name):
    samples = np.arange(100, 135)  # more than are changed at once
    pictures = torch.from_numpy(np.stack([photo(24, seed) for seed in range(len(samples))]))
    whole = corrupt(pictures, samples, name, 3, seed=1)
    assert whole.dtype == torch.uint8 and whole.shape == pictures.shape
    order = np.random.default_rng(0).permutation(len(samples))
    parts = [corrupt(pictures[p], samples[p], name, 3, seed=1) for p in np.array_split(order, 6)]
    assert torch.equal(torch.cat(parts), whole[order])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_is_drawn_goes_by_seed_severity_and_sample(name):
    pictures = torch.from_numpy(np.stack([photo(48)] * 2))
    first, second = corrupt(pictures, np.array([1, 2]), name, 3)
    other_seed = corrupt(pictures, np.array([1, 2]), name, 3, seed=1)[0]
    assert torch.equal(first, second) == torch.equal(first, other_seed) == (name not in DRAWN)
    if name in ("gaussian_noise", "impulse_noise"):  # severities are no louder copies of each other
        strong = corrupt(pictures, np.array([1, 2]), name, 5)[0]
        raised = [x.double().sub(pictures[0]).sign().flatten() for x in (first, strong)]
        both = (raised[0] != 0) & (raised[1] != 0)
        assert (raised[0] == raised[1])[both].double().mean() < 0.75


def test_blur_of_a_smaller_picture_is_the_blur_of_the_large_one():
    large = photo(224)

    def halved(picture):
        return picture.reshape(3, 112, 2, 112, 2).mean(axis=(2, 4))

    small = halved(large).astype(np.uint8)
    for name in ("gaussian_blur", "defocus_blur"):
        for severity in (2, 5):
            wanted = halved(corrupted(large, name, severity))
            assert np.abs(corrupted(small, name, severity) - wanted).mean() < 1.5


@pytest.mark.parametrize("scale", [1 / 7, 0.5, 0.9, 1.0, 1.7])
def test_a_kernel_keeps_its_sum_its_symmetry_and_its_width(scale):
    kernel = gaussian_kernel(6)
    resized = resized_kernel(kernel, scale)
    assert resized.sum() == pytest.approx(1) and np.allclose(resized, resized[::-1, ::-1].T)
    half = len(resized) // 2
    variance = (resized.sum(axis=0) * np.arange(-half, half + 1) ** 2).sum()
    assert variance == pytest.approx((6 * scale) ** 2, rel=0.02, abs=0.25)  # a pixel's own width is at most 1/12 twice
    if scale == 1:
        assert np.allclose(resized, kernel)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_worst_severity_changes_more_than_the_mildest(name):
    picture = photo(96)
    mild, worst = (np.abs(corrupted(picture, name, s).astype(float) - picture).mean() for s in (1, 5))
    assert 0 < mild < worst
