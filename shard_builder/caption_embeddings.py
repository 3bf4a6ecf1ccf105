"""From captions to the cache: load the frozen encoder, embed what is missing, save every few thousand captions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from core import parts
from core.column_kind import Progress
from core.config import Choice
from core.manifest import TextEncoderSpec
from core.text_encoders import TEXT_ENCODERS
from core.text_encoders.encoder import TextEncoder
from shard_builder.caption_cache import CaptionCache

SEGMENT_CAPTIONS = 4096  # saved together, at least: what a killed build loses
PROBE_CAPTIONS = 256  # measured for an estimate


def text_encoder_spec(choice: Choice) -> TextEncoderSpec:
    """What the encoder is, from its files; its weights are not loaded.

    Raises:
        WeightsError: it is not on this machine.
    """
    encoder: TextEncoder = parts.build(TEXT_ENCODERS, choice, "text encoder", device="cpu")
    return encoder.spec


def embed_with_progress(
    choice: Choice, spec: TextEncoderSpec, captions: Sequence[str], folder: Path, batch_size: int, progress: Progress
) -> None:
    """Bring the embeddings of all `captions` into the cache at `folder`, on a GPU where there is one."""
    cache = CaptionCache(folder, spec)
    missing = cache.missing(captions)
    if not missing:
        return
    encoder = _encoder(choice)
    with progress("captions", len(missing)) as show:
        embed_missing(cache, encoder, missing, batch_size, show)


def embed_missing(
    cache: CaptionCache,
    encoder: TextEncoder,
    captions: Sequence[str],
    batch_size: int,
    progress: Callable[[int], None],
) -> None:
    """Embed the captions that `cache` lacks; `progress` is told how many are done."""
    from core.text_encoders.encode import encode_batches

    assert encoder.spec == cache.spec, f"{encoder.spec} is not {cache.spec}"
    missing = cache.missing(captions)
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    done = saved = 0
    for numbers, embeddings in encode_batches(encoder, missing, batch_size):
        waiting.append((numbers, embeddings))
        done += len(numbers)
        # Segments grow with the job: each stays open in every reader, and a share of the work is all that a kill costs.
        if done - saved >= max(SEGMENT_CAPTIONS, saved // 32) or done == len(missing):
            which = np.concatenate([n for n, _ in waiting])
            cache.add([missing[number] for number in which], np.concatenate([e for _, e in waiting]))
            waiting, saved = [], done
        progress(done)


def captions_per_s(choice: Choice, captions: Sequence[str], batch_size: int) -> float:
    """How many captions this machine embeds in a second, measured on a few of `captions`."""
    from core.text_encoders.encode import encode_captions

    encoder = _encoder(choice)
    some = captions[:: max(1, len(captions) // PROBE_CAPTIONS)][:PROBE_CAPTIONS]
    encode_captions(encoder, some[:1], batch_size, lambda done: None)  # loads the weights
    start = time.perf_counter()
    encode_captions(encoder, some, batch_size, lambda done: None)
    return len(some) / (time.perf_counter() - start)


def _encoder(choice: Choice) -> TextEncoder:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder: TextEncoder = parts.build(TEXT_ENCODERS, choice, "text encoder", device=device)
    return encoder
