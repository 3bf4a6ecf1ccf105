"""Features of a whole shard set, gathered over the ranks; kept on disk with the encoder they are from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from core.distributed import act_together, all_gather_rows, gather_objects, rank, world_size
from core.errors import DamagedError, DataError, StorageError
from core.full_float32 import full_float32
from core.shard_set import ShardSet
from core.storage import publish_bytes
from core.transfer import upload
from eval.evaluations.evaluation import ChangePictures
from eval.metrics import FeatureSet, RightAnswers, check_rows
from trainer.data.batch import Batch
from trainer.data.inputs import evaluation_inputs
from trainer.data.names import IMAGE_ID, TEXT
from trainer.data.prefetch import to_device
from trainer.models.encoder import Encoder
from trainer.objectives.engine import blocked_loss
from trainer.objectives.objective import IMAGE, Objective, Rows, Tensors

_CAPTIONS_AT_ONCE = 256  # through a trained text tower
_RIGHT, _RIGHT_ARRAYS = "right", ("says", "images", "holds")  # in a feature file
Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Features of a shard set's pictures: samples that show one image are one row.

    `images` `(N, D)` float32, unit length. `samples` `(N,)`: the sample that each row was read from, in their order.
    """

    images: np.ndarray
    samples: np.ndarray


@dataclass(frozen=True, eq=False)
class Extracted:
    """Features of a shard set in the order of its samples; samples that show one image are one row of images.

    `samples` `(N,)`: the sample each image row was read from. `captions` `(T, 2)`: sample and place of each text row.
    """

    features: FeatureSet
    samples: np.ndarray
    captions: np.ndarray
    logit_scale: float

    @property
    def pictures(self) -> Pictures:
        """Without the captions."""
        return Pictures(self.features.images, self.samples)


def extract(
    encoder: Encoder,
    normalize: Callable[[Tensor], Tensor],
    shard_set: ShardSet,
    batches: Iterable[Batch],
    *,
    logit_scale: float,
    device: torch.device,
    autocast: Autocast = nullcontext,
    progress: Callable[[int], None] = lambda num_samples: None,
) -> Extracted:
    """Features of every sample, each computed once by one rank; every rank gets all of them (collective).

    Args:
        encoder: not wrapped in DDP, whose forward would wait for other ranks.
        normalize: uint8 `(B, 3, S, S)` -> what the model expects.
        batches: this rank's share of the shard set (an `EvalLoader`).
        logit_scale: kept beside the features, as the temperature of probabilities.
        progress: called with the number of samples that this rank has just done.

    Raises:
        DataError: NaN features, or a sample that was not read exactly once.
    """
    texts: list[Tensor] = []
    counts: list[Tensor] = []

    def keep_captions(batch: Batch) -> None:
        own_texts, own_counts = _texts(encoder, shard_set, batch, device)
        texts.append(own_texts)
        counts.append(own_counts)

    images, samples = _forward(encoder, normalize, batches, device, autocast, progress, keep_captions)
    _expect_each_once(samples, np.arange(len(shard_set)))
    text_type = torch.float16 if encoder.text_encoder is None else torch.float32
    all_texts = _gather(texts, device, (0, images.shape[1]), text_type)
    return _assemble(shard_set, images, all_texts, _gather(counts, device, (0,), torch.int64), samples, logit_scale)


def extract_pictures(
    encoder: Encoder,
    normalize: Callable[[Tensor], Tensor],
    shard_set: ShardSet,
    batches: Iterable[Batch],
    samples: np.ndarray | None = None,
    *,
    device: torch.device,
    autocast: Autocast = nullcontext,
    progress: Callable[[int], None] = lambda num_samples: None,
    change: ChangePictures | None = None,
) -> Pictures:
    """The same of pictures alone (collective).

    Args:
        samples: those of the batches, in order; of a damaged one its substitute counts. None: the whole set.
        change: of the pictures as they are stored, before `normalize`.

    Raises:
        DataError: NaN features, or a sample that was not read exactly once.
    """
    images, read = _forward(encoder, normalize, batches, device, autocast, progress, lambda batch: None, change)
    if samples is None:
        _expect_each_once(read, np.arange(len(shard_set)))
    check_rows(images, "image")
    served, row = np.unique(read, return_index=True)
    first = _merge_same_images(shard_set.image_ids(served))[1]
    return Pictures(images[row[first]], served[first])


def has_pair_loss(objective: Objective) -> bool:
    """Whether pictures and captions are all that the objective needs for its loss."""
    compares_pairs = set(objective.features) == {IMAGE, TEXT} and set(objective.columns) <= {IMAGE_ID}
    return compares_pairs and not objective.initial_state(1)


def mean_pair_loss(
    extracted: Extracted,
    image_ids: np.ndarray,
    objective: Objective,
    scalars: Tensors,
    batch_size: int,
    device: torch.device,
) -> float:
    """The training loss over successive batches of images with their first captions, in sample order (collective).

    In nats. Batches are dealt out whole over the ranks, and their losses added up in their own order: any number of
    ranks gives the same digits. Products are of float32, whatever precision training uses.

    Args:
        image_ids: `(N,)` of the image rows, as the shard set gives them.
        objective: one that `has_pair_loss`.
        scalars: of the objective.
        batch_size: the loss grows with it, so it should be the one trained with; a ragged rest is left out, and a set
            that is smaller is one batch.
        device: where this rank's batches are computed.
    """
    features = extracted.features
    batch_size = min(batch_size, len(features.images))
    first_text = np.unique(features.image_of_text, return_index=True)[1]
    scalars = {name: value.detach().to(device) for name, value in scalars.items()}
    starts = range(0, len(features.images) - batch_size + 1, batch_size)

    def loss_of(start: int) -> float:
        part = slice(start, start + batch_size)
        rows = {
            IMAGE: features.images[part],
            TEXT: features.texts[first_text[part]],
            IMAGE_ID: image_ids[part].view(np.int64),
        }
        batch = {name: upload(torch.from_numpy(row), device) for name, row in rows.items()}
        return float(blocked_loss(objective, Rows(batch, batch, 0), scalars, {}))

    with full_float32():
        own = act_together(lambda: [loss_of(start) for start in starts[rank() :: world_size()]])
    dealt = gather_objects(own)
    return float(np.mean([dealt[i % len(dealt)][i // len(dealt)] for i in range(len(starts))]))


def shards_stamp(fingerprint: str, captions_from: str = "") -> str:
    """What a feature file names its shards by: their fingerprint, and the file of other captions than theirs."""
    return f"{fingerprint} with captions of {captions_from}" if captions_from else fingerprint


def save_features(extracted: Extracted | Pictures, path: Path, encoder: str, shards: str) -> None:
    """Publish the features with the fingerprint of the image encoder and the `shards_stamp` of what they are from."""
    metadata = {"encoder": encoder, "shards": shards}
    if isinstance(extracted, Pictures):
        tensors = {"images": extracted.images, "samples": extracted.samples}
    else:
        metadata["logit_scale"] = json.dumps(extracted.logit_scale)
        tensors = {
            "images": extracted.features.images,
            "texts": extracted.features.texts,
            "image_of_text": extracted.features.image_of_text,
            "samples": extracted.samples,
            "captions": extracted.captions,
        }
        if (right := extracted.features.more_right) is not None:
            metadata[_RIGHT] = right.kind
            tensors |= {f"{_RIGHT}.{name}": getattr(right, name) for name in _RIGHT_ARRAYS}
    publish_bytes(save(tensors, {**metadata, "sha256": _digest(tensors, metadata)}), path)


def load_features(path: Path, encoder: str | None = None, shards: str | None = None) -> Extracted:
    """Read features back; `encoder` and `shards`, where given, must be those they were saved with.

    Raises:
        DataError: the features are of another encoder or another shard set, or of pictures alone.
        DamagedError: the file is not as it was written, or no feature file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path}: no whole feature file ({error}). Run `shardclip eval` again.") from None
    except FileNotFoundError:
        raise StorageError(f"{path}: no such file. Run `shardclip eval`.") from None
    if metadata.pop("sha256", None) != _digest(tensors, metadata):
        raise DamagedError(f"{path}: damaged (its own hash does not fit). Run `shardclip eval` again.")
    for what, expected in (("encoder", encoder), ("shards", shards)):
        if expected is not None and metadata.get(what) != expected:
            raise DataError(
                f"{path}: its {what} is {metadata.get(what)}, {expected} is needed. Run `shardclip eval` again."
            )
    if "texts" not in tensors:
        raise DataError(f"{path}: holds features of pictures alone: its encoder was trained without captions.")
    right = None
    if _RIGHT in metadata:
        right = RightAnswers(metadata[_RIGHT], *(tensors[f"{_RIGHT}.{name}"] for name in _RIGHT_ARRAYS))
    features = FeatureSet(tensors["images"], tensors["texts"], tensors["image_of_text"], right)
    return Extracted(features, tensors["samples"], tensors["captions"], json.loads(metadata["logit_scale"]))


def _digest(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _forward(
    encoder: Encoder,
    normalize: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    device: torch.device,
    autocast: Autocast,
    progress: Callable[[int], None],
    keep: Callable[[Batch], None],
    change: ChangePictures | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Features `(n, D)` of all ranks' pictures, and the samples `(n,)` they are of; `keep` is shown every batch."""
    was_training = encoder.training
    encoder.eval()
    images, samples = [], []
    with torch.no_grad():
        # Not `.to(device)` here: workers write a batch's memory again once it is dropped, which must be after its copy.
        for batch in to_device(iter(batches), device):
            changed = normalize if change is None else _changed(batch, change, normalize)
            with autocast():
                image_features = encoder.image_features(evaluation_inputs(batch, changed))
            images.append(image_features.float())
            samples.append(batch.samples)
            keep(batch)
            progress(len(batch))
    encoder.train(was_training)
    width = max(gather_objects(images[0].shape[1] if images else 0))  # a rank may have had no batch at all
    return _gather(images, device, (0, width), torch.float32), _gather(samples, device, (0,), torch.int64)


def _changed(batch: Batch, change: ChangePictures, normalize: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    assert batch.images is not None, "stored features cannot be changed as pictures"
    samples = batch.samples.cpu().numpy()
    return lambda images: normalize(change(images, samples))


def _texts(encoder: Encoder, shard_set: ShardSet, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features of all captions of a batch, and how many each sample has: stored ones, or the trained tower's."""
    if encoder.text_encoder is None:
        stored = batch.ragged(TEXT)
        return stored.values, stored.counts
    captions = [shard_set.captions(sample) for sample in batch.samples.tolist()]
    flat = [caption for own in captions for caption in own]
    features = encoder.text_encoder.embed_texts(flat, device, _CAPTIONS_AT_ONCE)
    return torch.from_numpy(features), torch.tensor([len(own) for own in captions])


def _gather(parts: list[Tensor], device: torch.device, empty: tuple[int, ...], dtype: torch.dtype) -> np.ndarray:
    """Rows of all ranks; a rank may have had no batch at all."""
    rows = torch.cat([torch.as_tensor(part) for part in parts]) if parts else torch.zeros(empty)
    return all_gather_rows(rows.to(device=device, dtype=dtype)).cpu().numpy()


def _expect_each_once(samples: np.ndarray, wanted: np.ndarray) -> None:
    if not np.array_equal(np.sort(samples), wanted):
        raise DataError(
            f"{len(samples)} samples were read, {len(np.unique(samples))} of them distinct; the set has"
            f" {len(wanted)}. Every sample counts once: this is a fault of the loader, please report it."
        )


def _assemble(
    shard_set: ShardSet,
    images: np.ndarray,
    texts: np.ndarray,
    num_captions: np.ndarray,
    samples: np.ndarray,
    logit_scale: float,
) -> Extracted:
    order = np.argsort(samples, kind="stable")
    row_of_sample, first_sample = _merge_same_images(shard_set.image_ids(np.arange(len(shard_set))))
    sample_of_text = np.repeat(samples, num_captions)
    text_order = np.argsort(sample_of_text, kind="stable")
    sample_of_text = sample_of_text[text_order]
    starts = np.cumsum(num_captions[order]) - num_captions[order]
    place = np.arange(len(sample_of_text)) - starts[sample_of_text]
    features = FeatureSet(images[order][first_sample], _unit(texts[text_order]), row_of_sample[sample_of_text])
    return Extracted(features, first_sample, np.stack([sample_of_text, place], axis=1), logit_scale)


def _merge_same_images(image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(samples,)` image row of each sample and `(N,)` first sample of each row, rows in order of first appearance."""
    first, inverse = np.unique(image_ids, return_index=True, return_inverse=True)[1:]
    by_appearance = np.argsort(first)
    row_of_id = np.argsort(by_appearance)
    return row_of_id[inverse], first[by_appearance]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Stored as float16, lengths are off by up to 1e-3: enough to reorder near-equal captions of an image."""
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
