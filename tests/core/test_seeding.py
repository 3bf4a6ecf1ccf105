"""Random numbers are pure functions of their key, uniform, and independent between streams."""

from __future__ import annotations

import numpy as np
import xxhash

from core.seeding import derive_seed, permutation, uniform


def test_a_sample_gets_the_same_numbers_in_any_batch() -> None:
    everyone = uniform(1, 2, np.arange(1000), "crop", 4)
    some = np.array([7, 999, 7, 0])
    assert np.array_equal(uniform(1, 2, some, "crop", 4), everyone[some])
    assert np.array_equal(uniform(1, 2, some, "crop", 2), everyone[some][:, :2])


def test_numbers_are_those_of_splitmix64() -> None:
    """Runs that go on with a later version must draw the same crops: Steele et al. 2014 in Python's whole numbers."""

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    draws = [0, 5, 2**40]
    key = xxhash.xxh3_64_intdigest(b"3\x002\x00'crop'") // 2
    assert key == derive_seed(3, 2, "crop")
    expected = [[(mix(mix(d + key) + 0x9E3779B97F4A7C15 * k) >> 40) / 2**24 for k in (1, 2, 3)] for d in draws]
    assert uniform(3, 2, np.array(draws), "crop", 3).tolist() == expected


def test_seed_epoch_sample_and_stream_all_matter() -> None:
    samples = np.arange(100)
    base = uniform(1, 2, samples, "crop", 4)
    for other in (
        uniform(2, 2, samples, "crop", 4),
        uniform(1, 3, samples, "crop", 4),
        uniform(1, 2, samples, "flip", 4),
    ):
        assert np.abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.2


def test_numbers_are_uniform_and_uncorrelated() -> None:
    numbers = uniform(0, 0, np.arange(200_000), "x", 3)
    assert numbers.dtype == np.float32 and numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert np.abs(counts / counts.mean() - 1).max() < 0.06
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.01
    assert np.abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.01


def test_permutations_are_fixed_by_their_key() -> None:
    assert np.array_equal(permutation(50, 1, "a"), permutation(50, 1, "a"))
    assert not np.array_equal(permutation(50, 1, "a"), permutation(50, 2, "a"))
    assert sorted(permutation(50, 3)) == list(range(50))
    assert derive_seed(1, "a") != derive_seed("1", "a") and derive_seed(1) < 2**63
