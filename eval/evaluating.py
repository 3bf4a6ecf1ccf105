"""One evaluation under way: its sets, the features of these, and the texts that are compared with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from core.columns import column_names
from core.distributed import rank, world_size
from core.errors import ConfigError, DataError
from core.manifest import MANIFEST_NAME, load_manifest
from core.shard_set import ShardSet
from core.storage import exists, join
from eval.captions_file import captions_identity
from eval.config import EvalConfig
from eval.encoder import (
    LoadedEncoder,
    ReadyEncoder,
    load_encoder,
    open_same_text,
    text_embedder,
    tower_alone,
    trained_embedder,
    untrained_encoder,
)
from eval.evaluations.evaluation import UNTRAINED, ChangePictures, EmbedTexts, OtherWeights
from eval.features import Extracted, Pictures, extract, extract_pictures
from eval.gallery import GallerySource
from eval.labels import Labels, label_column, labels_of
from eval.own_captions import with_captions
from eval.report.exhibits import Shelf
from eval.report.page import PICTURES
from eval.right_answers import captions_of, with_class_answers, with_equal_captions
from trainer.data.loader import TEXT_ALONE, EvalLoader
from trainer.data.names import LABEL
from trainer.models.config import BareTower


@dataclass(frozen=True, eq=False)
class Evaluating:
    """One evaluation under way."""

    config: EvalConfig
    encoder: ReadyEncoder
    out: Path
    device: torch.device
    console: Console
    others: dict[OtherWeights, Evaluating] = field(default_factory=dict)  # the same by other weights, once loaded

    def by(self, weights: OtherWeights) -> Evaluating:
        """The same evaluation by other weights; loaded once.

        Raises:
            ConfigError, CheckpointError, WeightsError: they are not there, or cannot be made again.
        """
        if weights not in self.others:
            encoder, config = self._encoder_of(weights), self.config
            if encoder.text_encoder != self.encoder.text_encoder:
                config = replace(config, text_encoder=None)  # which says where ours is found
            self.others[weights] = replace(self, config=config, encoder=encoder, others={})
        return self.others[weights]

    def _encoder_of(self, weights: OtherWeights) -> ReadyEncoder:
        if isinstance(weights, BareTower):
            return tower_alone(weights, _stored_size(self.config), self.device)
        if weights != UNTRAINED:
            return load_encoder(Path(weights), self.device)
        if not isinstance(self.encoder, LoadedEncoder):
            raise ConfigError(
                f"evaluations: '{UNTRAINED}' is the beginning of a run, and this is a tower. Leave it out."
            )
        return untrained_encoder(self.encoder, self.device)

    @cached_property
    def embed_texts(self) -> EmbedTexts:
        """Loads the text encoder at its first use: an evaluation without queries and classes needs none."""
        if (tower := self.encoder.model.text_encoder) is not None:
            return trained_embedder(tower, self.device)
        assert self.encoder.text_encoder is not None
        return text_embedder(self.encoder.text_encoder, self.config.text_encoder, self.device)

    @cached_property
    def captions_from(self) -> str:
        """The file that captions are from, where they are not the shards' own."""
        return captions_identity(self.config.captions) if self.config.captions else ""

    def open(self, urls: Sequence[str]) -> ShardSet:
        """Sets with the captions that the checkpoint compares, if it does."""
        if self.encoder.compares_text:
            return open_same_text(self.encoder, urls, self.config.cache_dir)
        return ShardSet.open(urls, self.config.cache_dir, text="")

    def shelf(self, shard_set: ShardSet, name: str, captions: Mapping[int, Sequence[str]] | None = None) -> Shelf:
        """Thumbnails and captions of a set, for the report."""
        return Shelf(shard_set, self.out / PICTURES, name, captions)

    def extract(self, shard_set: ShardSet, captions: Mapping[int, list[str]] | None = None) -> Extracted | Pictures:
        """Features of the whole set, with captions where the checkpoint compares them; and what is right in them.

        Args:
            captions: by sample number, in place of the set's own; pictures without are left out.
        """
        if captions is not None:
            pictures = pictures_of(self._extract(shard_set, None, with_text=False))
            found = with_captions(pictures, shard_set, captions, self.embed_texts, self.encoder.logit_scale)
            left_out = len(pictures.samples) - len(found.samples)
            if left_out:
                self.console.print(
                    f"{left_out:,} of {len(pictures.samples):,} pictures have no line in the captions file."
                )
        else:
            extracted = self._extract(shard_set, None, with_text=self.encoder.compares_text)
            if isinstance(extracted, Pictures):
                return extracted
            found = with_class_answers(extracted, shard_set, self.encoder.model.text_encoder is not None)
        if not self.config.equal_captions:
            return found
        texts = [text for own in captions.values() for text in own] if captions else captions_of(found, shard_set)
        return with_equal_captions(found, texts)

    def extract_gallery(self, source: GallerySource) -> Pictures:
        """Features of a gallery's samples."""
        found = self._extract(source.shard_set, source.samples, with_text=False)
        assert isinstance(found, Pictures)
        return found

    def encode(self, shard_set: ShardSet, samples: np.ndarray, change: ChangePictures) -> np.ndarray:
        """`(N, D)` features of some samples' pictures, changed."""
        found = self._extract(shard_set, samples, with_text=False, change=change)
        assert isinstance(found, Pictures)
        return found.images

    def _extract(
        self, shard_set: ShardSet, samples: np.ndarray | None, with_text: bool, change: ChangePictures | None = None
    ) -> Extracted | Pictures:
        loader = EvalLoader(
            shard_set,
            batch_size=self.config.batch_size,
            samples=samples,
            rank=rank(),
            world_size=world_size(),
            columns=TEXT_ALONE if with_text and self.encoder.model.text_encoder is None else {},
            num_workers=self.config.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*bar, console=self.console, transient=True, disable=change is not None) as progress:
            task = progress.add_task("images", total=len(shard_set) if samples is None else len(samples))
            given = (self.encoder.model, self.encoder.normalize, shard_set, loader)
            where: dict[str, Any] = {
                "device": self.device,
                "autocast": _autocast(self.config.precision, self.device),
                "progress": partial(progress.advance, task),
            }
            try:
                if with_text:
                    return extract(*given, logit_scale=self.encoder.logit_scale, **where)
                return extract_pictures(*given, samples, change=change, **where)
            finally:
                loader.close()


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """A set whose samples have classes, and where k-NN looks for neighbours (None: in the set itself)."""

    shard_set: ShardSet
    labels: Labels
    gallery: GallerySource | None


def encoder_of(config: EvalConfig, device: torch.device) -> ReadyEncoder:
    """What a recipe measures: a checkpoint, or a tower by itself, which sees pictures as they are stored.

    Raises:
        ConfigError, CheckpointError, WeightsError: it is not there, or damaged.
    """
    if config.checkpoint is not None:
        return load_encoder(config.checkpoint, device)
    assert config.model is not None, "one of them is given"
    return tower_alone(config.model, _stored_size(config), device)


def _stored_size(config: EvalConfig) -> int:
    return load_manifest(config.shards[0]).image.size


def pictures_of(found: Extracted | Pictures) -> Pictures:
    """The pictures' features."""
    return found.pictures if isinstance(found, Extracted) else found


def labelled_set(work: Evaluating, shard_set: ShardSet) -> LabelledSet | None:
    """The labelled shards, or the evaluated ones where they have labels; checked before anything is computed."""
    config, trained_on = work.config, work.encoder.identity["config"].get("data", {})
    is_other = config.labelled_shards and config.labelled_shards != shard_set.urls
    own = work.open(config.labelled_shards) if is_other else shard_set
    labels = labels_of(own, _column_there(trained_on, own.urls))
    if labels is None or not (labels.numbers >= 0).any():
        if config.labelled_shards or not work.encoder.compares_text:
            raise DataError(
                f"{own.urls[0]}: has no class labels. Build it with the image_folder reader, with labels in its jsonl, "
                "or add them with `shardclip column labels`."
            )
        return None
    urls = config.gallery or tuple(url for url in trained_on.get("train", ()) if exists(join(url, MANIFEST_NAME)))
    if not urls or (not config.gallery and len(urls) < len(trained_on["train"])):
        return LabelledSet(own, labels, None)
    gallery = ShardSet.open(urls, config.cache_dir, text="")
    gallery_labels = labels_of(gallery, _column_there(trained_on, urls))
    if gallery_labels is None and config.gallery:
        raise DataError(f"gallery: {urls[0]} has no class labels. Add them with `shardclip column labels`.")
    return LabelledSet(own, labels, GallerySource.of(gallery, gallery_labels, own) if gallery_labels else None)


def _column_there(trained_on: Mapping[str, Any], urls: Sequence[str]) -> str:
    """The label column of the training recipe, if all of these sets have it."""
    name = (trained_on.get("columns") or {}).get(LABEL, "")
    return label_column({LABEL: name}, urls) if name and all(name in column_names(url) for url in urls) else ""


def _autocast(precision: str, device: torch.device) -> Callable[[], Any]:
    if precision == "no":
        return nullcontext
    return partial(torch.autocast, device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
