"""`--to mteb`: the files of `--to safetensors`, and an encoder as mteb takes it. The one door to mteb."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from core.errors import ConfigError
from eval.export import safetensors

if TYPE_CHECKING:
    from pathlib import Path

    from eval.encoder import LoadedEncoder

_TASKS = {  # by whether it compares text: what the model card names
    True: ("Flickr30kT2IRetrieval", "Flickr30kI2TRetrieval"),
    False: ("CUB200I2IRetrieval", "CIFAR10"),
}
_FLOAT32 = (None, "float32")


def write(encoder: LoadedEncoder, folder: Path) -> str:
    """`encoder.safetensors`, as `--to safetensors` writes it; `shardclip.load` reads the folder."""
    safetensors.write(encoder, folder)
    name = encoder.path.parent.parent.name
    tasks = ", ".join(f'"{task}"' for task in _TASKS[encoder.compares_text])
    lines = [
        "import mteb  # pip install 'shardclip[mteb]'",
        "import shardclip",
        "import torch",
        "",
        "encoder = shardclip.load(FOLDER)",
        f"model = encoder.mteb_model({json.dumps(name)})",
        f"# results = mteb.evaluate(model, mteb.get_tasks(tasks=[{tasks}]))",
        "",
        "",
        "def encode(pictures):  # of any size: prepared as below, as mteb's pictures are",
        "    return torch.from_numpy(encoder.encode_image(pictures))",
    ]
    return "\n".join(lines)


class Encodes(Protocol):
    """What mteb measures; `shardclip.Encoder` is one. Both give `(N, D)` float32 of unit length."""

    def encode_image(self, images: list[Any]) -> np.ndarray:
        """Of PIL images."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Raises where captions played no part in training."""


class MtebModel:
    """An encoder under mteb's `EncoderProtocol`: `mteb.evaluate(model, tasks)`.

    Attributes:
        mteb_model_meta: what mteb's results say of it.
    """

    def __init__(self, encoder: Encodes, mteb_model_meta: Any) -> None:
        self._encoder, self.mteb_model_meta = encoder, mteb_model_meta

    def encode(self, inputs: Iterable[Mapping[str, Any]], **asked: Any) -> np.ndarray:
        """Vectors `(N, D)` float32 of unit length, in the order of the inputs.

        Inputs of an image and a text give the sum of both vectors at unit length, as mteb's own CLIP models have it.
        Texts are encoded as they are: prompts and instructions of a task are for other models.

        Args:
            inputs: mteb's batches: `image`, PIL images, or `text`, or both.
            asked: `precision` and `show_progress_bar` count; of which task and split the inputs are does not.

        Raises:
            ConfigError: the inputs are neither, or other numbers than float32 are asked for, or texts are and captions
                played no part in training.
        """
        if (precision := asked.get("precision")) not in _FLOAT32:
            raise ConfigError(
                f"mteb: encode_kwargs has precision={precision!r}, this encoder gives float32. Leave it out."
            )
        from tqdm.auto import tqdm

        shown = asked.get("show_progress_bar", True)
        return np.concatenate([self._vectors(batch) for batch in tqdm(inputs, desc="Encoding", disable=not shown)])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines `(N, M)`, a tensor, of `(N, D)` and `(M, D)` vectors of `encode`, arrays or tensors."""
        from mteb.similarity_functions import dot_score

        return dot_score(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines `(N,)`, a tensor, of `(N, D)` and `(N, D)` vectors of `encode`, row by row."""
        from mteb.similarity_functions import pairwise_dot_score

        return pairwise_dot_score(embeddings1, embeddings2)

    def _vectors(self, batch: Mapping[str, Any]) -> np.ndarray:
        parts = []
        if "image" in batch:
            parts.append(self._encoder.encode_image(list(batch["image"])))
        if "text" in batch:
            parts.append(self._encoder.encode_text(list(batch["text"])))
        if not parts:
            raise ConfigError(
                f"mteb: the inputs hold {', '.join(batch)}; this encoder takes image and text. Take another task."
            )
        if len(parts) == 1:
            return parts[0]
        fused = parts[0] + parts[1]
        return np.asarray(fused / np.linalg.norm(fused, axis=1, keepdims=True).clip(min=1e-12))


def mteb_model(encoder: Encodes, loaded: LoadedEncoder, name: str) -> MtebModel:
    """The encoder as mteb takes it.

    Args:
        encoder: of pictures and texts.
        loaded: its weights. Their fingerprint is the revision, so that mteb's cache keeps those of two runs apart.
        name: `organization/model`; without a `/` it becomes `shardclip/NAME`.

    Raises:
        ConfigError: mteb is not installed.
    """
    try:
        from mteb.models.model_meta import ModelMeta, ScoringFunction
    except ModuleNotFoundError as error:
        missing = (error.name or "mteb").split(".")[0]
        raise ConfigError(
            f"an encoder for mteb needs {missing}, which is not installed: run `pip install 'shardclip[mteb]'`."
        ) from error
    tensors = list(loaded.model.parameters())
    meta = ModelMeta(
        loader=None,
        name=name if "/" in name else f"shardclip/{name}",
        revision=loaded.fingerprint,
        release_date=None,
        languages=None,
        n_parameters=sum(tensor.numel() for tensor in tensors),
        memory_usage_mb=sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20,
        max_tokens=None,
        embed_dim=loaded.embed_dim,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=False,
        training_datasets=None,
        modalities=["image", "text"] if loaded.compares_text else ["image"],
    )
    return MtebModel(encoder, meta)
