"""Embed many captions: each distinct one once, sorted by length, in batches of one shape, one per core at a time.

A caption's embedding is the same, bit for bit, whatever is encoded with it and however many cores there are: every
matrix product has one fixed shape (the last batch is filled up), attention stays within captions (ragged.py), and a
batch is computed by one thread, so that no reduction is cut differently. Killed and resumed builds rely on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from core.text_encoders.encoder import TextEncoder

TOKENS_PER_CAPTION = 16  # a usual caption; batch_size times this is a batch's tokens
CPU_TOKENS = 1024  # a core is fastest with about these in a batch: more do not stay in its cache


def encode_captions(
    encoder: TextEncoder, captions: Sequence[str], batch_size: int, progress: Callable[[int], None]
) -> np.ndarray:
    """Embeddings `(N, E)` float16, unit length, in the order of `captions`.

    Args:
        batch_size: captions of usual length per batch (on a CPU at most 64 are taken; a GPU likes 1024). It sets the
            shape of the matrix products: another one may change an embedding's last bit.
        progress: told the number of distinct captions that are done.
    """
    rows = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    embeddings = np.empty((len(rows), encoder.spec.embed_dim), np.float16)
    done = 0
    for numbers, values in encode_batches(encoder, list(rows), batch_size):
        embeddings[numbers] = values
        done += len(numbers)
        progress(done)
    return embeddings[[rows[caption] for caption in captions]]


def encode_batches(
    encoder: TextEncoder, captions: Sequence[str], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (numbers of captions, their embeddings `(n, E)` float16), shortest captions first."""
    if not captions:
        return
    encoder.load()
    ids = encoder.tokenize(captions)
    num_tokens = _tokens_per_batch(encoder, batch_size)
    batches = _batches([len(own) for own in ids], num_tokens)

    def embed(numbers: np.ndarray) -> np.ndarray:
        return _embed_batch(encoder, [ids[number] for number in numbers], num_tokens)

    with _one_thread_per_batch(encoder.device) as pool:
        yield from zip(batches, pool.map(embed, batches))


def _tokens_per_batch(encoder: TextEncoder, batch_size: int) -> int:
    wanted = batch_size * TOKENS_PER_CAPTION
    if encoder.device.type == "cpu":
        wanted = min(wanted, CPU_TOKENS)
    # Whole vectors of 16: the last numbers of a tensor would go through other instructions, with another last bit.
    return -(-max(wanted, encoder.max_tokens) // 16) * 16


def _batches(lengths: Sequence[int], num_tokens: int) -> list[np.ndarray]:
    """Numbers of captions, sorted by length, cut where the next one would not fit into `num_tokens`."""
    order = np.argsort(lengths, kind="stable")
    batches, start, used = [], 0, 0
    for place, number in enumerate(order):
        if used + lengths[number] > num_tokens:
            batches.append(order[start:place])
            start, used = place, 0
        used += lengths[number]
    return [*batches, order[start:]]


@torch.inference_mode()
def _embed_batch(encoder: TextEncoder, ids: list[list[int]], num_tokens: int) -> np.ndarray:
    flat = torch.zeros(num_tokens, dtype=torch.long)
    flat[: sum(map(len, ids))] = torch.tensor([token for own in ids for token in own])
    embedded = encoder.embed(flat.to(encoder.device), [len(own) for own in ids])
    return embedded.half().cpu().numpy()


@contextmanager
def _one_thread_per_batch(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """A pool with a thread per core, each computing alone; one thread feeds a GPU."""
    num_threads = torch.get_num_threads()
    workers = num_threads if device.type == "cpu" else 1
    pool = ThreadPoolExecutor(workers, "encode", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)  # the setting of new threads is shared by all
