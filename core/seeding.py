"""Counter-based random numbers: pure functions of (seed, epoch, draw, stream), the same in every process.

Drawn from no state: the numbers of a draw do not depend on batch, worker, rank or on what was drawn before
(counter-based generators: Salmon et al. 2011; mixing function: splitmix64, Steele et al. 2014).
"""

from __future__ import annotations

import numpy as np
import xxhash

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)


def uniform(seed: int, epoch: int, draws: np.ndarray, stream: str, count: int) -> np.ndarray:
    """Independent uniform numbers for each draw.

    Args:
        draws: `(B,)` whole numbers of 0 or more: a sample's own, or that of its repeat (`samplers.epoch.draws_of`).
        stream: what the numbers are for ("caption", "crop"); streams are independent.

    Returns:
        `(B, count)` float32 in [0, 1).
    """
    key = np.uint64(derive_seed(seed, epoch, stream))
    with np.errstate(over="ignore"):  # 64-bit arithmetic modulo 2^64 is meant
        rows = _mix(np.asarray(draws).astype(np.uint64) + key)
        bits = _mix(rows[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))
    return ((bits >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24)


def permutation(n: int, *key: int | str) -> np.ndarray:
    """A permutation of 0..n-1, `(n,)` int64, fixed by `key`."""
    return np.random.Generator(np.random.Philox(key=derive_seed(*key))).permutation(n)


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from any key."""
    return xxhash.xxh3_64_intdigest("\0".join(map(repr, key)).encode()) >> 1


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX_A
    x = (x ^ (x >> np.uint64(27))) * _MIX_B
    return x ^ (x >> np.uint64(31))
