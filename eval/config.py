"""The settings of an evaluation; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core import parts
from core.config import Choice
from core.errors import ConfigError
from core.text_encoders import TEXT_ENCODERS
from eval.evaluations import chosen
from eval.evaluations.retrieval import PROTOCOLS
from eval.evaluations.zero_shot import check_templates, read_lines
from trainer.models.config import BareTower


@dataclass(frozen=True)
class EvalConfig:
    """A recipe of `shardclip eval`."""

    shards: tuple[str, ...]  # images with captions: retrieval, queries, unlabelled zero-shot; with labels: k-NN
    checkpoint: Path | None = None  # a run folder (its best checkpoint), RUN/best, RUN/latest or a checkpoint folder
    model: BareTower | None = None  # or a tower by itself, which compares pictures alone; needs `out`
    # A .jsonl of captions in place of the shards' own: {"image_id": ..., "captions": [...]} in each line.
    captions: Path | None = None
    equal_captions: bool = False  # equal captions of other images are right answers too; False: the field's protocols
    out: Path | None = None  # None: the run folder
    protocols: tuple[str, ...] = ("full",)  # full, coco-5k, coco-1k-5fold, flickr8k-1k; the first is the headline
    queries: tuple[str, ...] = ()  # free text, each shown with the images it finds
    classes: tuple[str, ...] = ()  # for zero-shot classes of images without labels
    classes_file: Path | None = None  # or a file with one class per line
    templates: tuple[str, ...] = ("a photo of a {}.",)  # what a class becomes as captions, {} being its name
    templates_file: Path | None = None  # or a file with one template per line
    labelled_shards: tuple[str, ...] = ()  # images with class labels: zero-shot and k-NN accuracy; (): `shards`
    gallery: tuple[str, ...] = ()  # labelled sets in which k-NN looks; (): what the checkpoint was trained on, if there
    text_encoder: Choice | None = None  # for queries and classes; None: found by the name that the shards give
    baseline: Path | None = None  # the folder of an earlier `eval` of the same shards: paired intervals of the gain
    evaluations: tuple[Choice, ...] = ()  # beside retrieval, k-NN and zero-shot, measured where the data allow
    num_examples: int = 6  # random captions and images to show, and twice as many zero-shot pictures
    loss_batch_size: int | None = None  # of the validation loss; None: the global batch that it was trained with
    batch_size: int = 256  # images at a time
    num_workers: int = 2  # decoding processes; 0 decodes in the evaluating one
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    precision: Literal["no", "bf16", "fp16"] = "no"  # float32: figures that hold to the last digit
    cache_dir: Path | None = None  # local disk for shards of remote sets

    def __post_init__(self) -> None:
        if not self.shards:
            raise ConfigError("shards is empty. Name at least one shard set.")
        if self.checkpoint is None and self.model is None:
            raise ConfigError("checkpoint is missing. Name a run, or a tower by itself: model: {tower: resnet50, ...}.")
        if self.checkpoint is not None and self.model is not None:
            raise ConfigError(
                f"checkpoint is {self.checkpoint} and model is {self.model}: one of them is measured. Leave one out "
                "(checkpoint=null)."
            )
        if self.checkpoint is None and self.out is None:
            raise ConfigError(f"out is missing: {self.model} has no run folder that results could go to. Name one.")
        if self.text_encoder is not None:
            parts.check(TEXT_ENCODERS, self.text_encoder, "text_encoder", given=["device"])
        for name, least in (("batch_size", 1), ("num_workers", 0), ("num_examples", 0), ("loss_batch_size", 2)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigError(f"{name} is {value}: at least {least} is needed.")
        for protocol in self.protocols:
            if protocol not in PROTOCOLS:
                raise ConfigError(f"protocols: unknown protocol '{protocol}'. Known: {', '.join(PROTOCOLS)}.")
        if self.equal_captions and (strict := self.strict_protocols()):
            raise ConfigError(
                f"equal_captions makes other images' captions right, protocol '{strict[0]}' counts own captions alone. "
                "Use protocols: full, or leave equal_captions out."
            )
        chosen(self.evaluations)  # an unknown name or option
        check_templates(self.all_templates())
        self.all_classes()  # a file that is not there

    def strict_protocols(self) -> tuple[str, ...]:
        """Those of the protocols in which a picture's own captions alone may be right."""
        return tuple(protocol for protocol in self.protocols if protocol != "full")

    def all_classes(self) -> tuple[str, ...]:
        """Classes for images without labels."""
        return read_lines(self.classes_file) if self.classes_file else self.classes

    def all_templates(self) -> tuple[str, ...]:
        """Prompt templates."""
        return read_lines(self.templates_file) if self.templates_file else self.templates
