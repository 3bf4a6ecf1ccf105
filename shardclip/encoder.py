"""A trained encoder in a few lines: `shardclip.load("runs/mine").encode_image("dog.jpg")`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from core.config import Choice, convert
from core.errors import ConfigError, DataError
from core.transfer import upload
from eval.encoder import LoadedEncoder, chosen_device, load_encoder, text_embedder, trained_embedder
from eval.export.exported import is_exported, load_exported
from shardclip.pictures import Picture, listed, stored

if TYPE_CHECKING:
    from eval.export.mteb import MtebModel


def load(
    run: str | Path,
    *,
    device: str = "auto",
    text_encoder: str | Mapping[str, Any] | None = None,
    batch_size: int = 64,
) -> Encoder:
    """The encoder that a run has trained.

    Args:
        run: a run folder (its best checkpoint), `RUN/best`, `RUN/latest`, a checkpoint folder, or what `shardclip
            export` has written with `--to safetensors` or `--to mteb`.
        device: auto (a GPU where there is one), cpu, cuda.
        text_encoder: where the frozen text encoder of the training set lies, as recipes name it; None: found by its
            own name. It is loaded when the first text is encoded.
        batch_size: pictures or texts that are computed at a time.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: cuda is asked for and there is none.
    """
    choice = None if text_encoder is None else convert(text_encoder, Choice, "text_encoder")
    on, folder = chosen_device(device), Path(run)
    loaded = load_exported(folder, on) if is_exported(folder) else load_encoder(folder, on)
    return Encoder(loaded, on, choice, batch_size)


class Encoder:
    """Pictures and texts to unit vectors in one space; `shardclip.load` makes it."""

    def __init__(
        self, loaded: LoadedEncoder, device: torch.device, text_encoder: Choice | None, batch_size: int
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: at least 1 is needed.")
        self._loaded, self._choice, self._batch_size = loaded, text_encoder, batch_size
        self._image = loaded.stored_image
        self.device = device

    def __repr__(self) -> str:
        size, width = self._loaded.identity["image"]["size"], self.embed_dim
        return f"Encoder({str(self.path)!r}, {size} px -> {width}, texts by {self._loaded.text_name})"

    @property
    def path(self) -> Path:
        """The checkpoint's folder, or that of the export."""
        return self._loaded.path

    @property
    def embed_dim(self) -> int:
        """D, the width of the vectors."""
        return self._loaded.embed_dim

    @property
    def logit_scale(self) -> float:
        """1 / temperature, as it was learned: `softmax(logit_scale * similarity)` are probabilities."""
        return self._loaded.logit_scale

    @torch.inference_mode()
    def encode_image(self, images: Picture | list[Picture] | tuple[Picture, ...]) -> np.ndarray:
        """Vectors `(N, D)` float32 of unit length, one for each picture; a single picture gives `(1, D)`.

        Every picture is fitted as the training set's were (crop, squash or pad, Pillow's bicubic filter) and normalised
        as the tower wants it: `shardclip eval` computes the same from stored pictures.

        Args:
            images: a PIL image, a path or URL, the bytes of a file, an array or tensor, or a list of these.
                Arrays are `(H, W, 3)`, `(3, H, W)` or a batch of them, RGB; `(H, W)` is grey. uint8 from 0 to 255, or
                floats from 0 to 1 as torchvision's `ToTensor` makes them; not normalised.

        Raises:
            DataError: a picture cannot be read, or holds floats outside 0 to 1.
            StorageError: a file is not there.
        """
        pictures = listed(images)
        features = np.empty((len(pictures), self.embed_dim), np.float32)
        for part in _parts(len(pictures), self._batch_size):
            pixels = np.stack([stored(pictures[n], self._image, n) for n in range(part.start, part.stop)])
            batch = upload(torch.from_numpy(pixels).permute(0, 3, 1, 2), self.device)
            features[part] = self._loaded.model.image_features(self._loaded.normalize(batch)).cpu().numpy()
        return features

    def encode_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Vectors `(N, D)` float32 of unit length, one for each text; a single text gives `(1, D)`.

        They come from the text tower that was trained, or from the frozen encoder that embedded the training set's
        captions; longer texts than that takes are cut as its tokenizer cuts them.

        Raises:
            ConfigError: the run compared pictures with pictures, never with text.
            WeightsError: the text encoder is not on this machine.
        """
        if not self._loaded.compares_text:
            raise ConfigError(f"{self.path} was trained without captions, so it encodes no text. Use encode_image.")
        given = [texts] if isinstance(texts, str) else list(texts)
        if strange := next((text for text in given if not isinstance(text, str)), None):
            raise DataError(f"encode_text: takes a text or a list of texts; there is a {type(strange).__name__} in it.")
        if not given:
            return np.empty((0, self.embed_dim), np.float32)
        vectors = self._embed_texts(given).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def similarity(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Cosines `(N, T)` float32, from -1 to 1, of `encode_image`'s `(N, D)` and `encode_text`'s `(T, D)` vectors.

        Raises:
            DataError: the vectors are not this encoder's.
        """
        for name, vectors in (("images", images), ("texts", texts)):
            if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.shape[1] != self.embed_dim:
                shape = getattr(vectors, "shape", type(vectors).__name__)
                raise DataError(f"similarity: {name} is {shape}, vectors (N, {self.embed_dim}) are needed.")
        return np.asarray(images.astype(np.float32) @ texts.astype(np.float32).T)

    def mteb_model(self, name: str) -> MtebModel:
        """This encoder as mteb takes it: `mteb.evaluate(encoder.mteb_model("mine"), tasks)`.

        Args:
            name: in mteb's results, `organization/model`; without a `/` it becomes `shardclip/NAME`. The revision
                beside it is the fingerprint of the weights.

        Raises:
            ConfigError: mteb is not installed.
        """
        from eval.export.mteb import mteb_model

        return mteb_model(self, self._loaded, name)

    @cached_property
    def _embed_texts(self) -> Callable[[Sequence[str]], np.ndarray]:
        if (tower := self._loaded.model.text_encoder) is not None:
            return trained_embedder(tower, self.device, self._batch_size)
        assert self._loaded.text_encoder is not None
        return text_embedder(self._loaded.text_encoder, self._choice, self.device, self._batch_size)


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
