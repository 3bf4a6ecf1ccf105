"""An encoder for use elsewhere: `shardclip export runs/mine --to onnx exported/mine`; whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from core.storage import publish_folder
from eval.encoder import LoadedEncoder, load_encoder
from eval.export import FORMS
from eval.export.early import expect_exportable
from eval.export.form import Form
from eval.export.model_card import model_card
from trainer.checkpoint.weights import read_weights
from trainer.run.exported import FACTS_FILE

CARD = "README.md"
FORMAT_VERSION = 1


def export(run: Path, to: str, out: Path, console: Console) -> Path:
    """Write an encoder in one of `FORMS`, with a model card and what it is, into a new folder; returns the folder.

    Args:
        run: a run folder (its best checkpoint), `RUN/best`, `RUN/latest` or a checkpoint folder.
        out: absent or empty.

    Raises:
        ConfigError: no such form, or it is not for this tower, or its library is not installed.
        CheckpointError: there is no checkpoint, or it is damaged.
        StorageError: the folder holds other things, or cannot be written; nothing is left.
    """
    expect_exportable(run, to, out)
    write: Form = import_module(FORMS[to]).write
    encoder = load_encoder(run, torch.device("cpu"))
    encoder.model.to(memory_format=torch.contiguous_format)  # the order that files know

    def fill(folder: Path) -> None:
        code = write(encoder, folder)
        (folder / FACTS_FILE).write_text(json.dumps(facts(encoder, to), indent=1, ensure_ascii=False) + "\n", "utf-8")
        (folder / CARD).write_text(model_card(encoder, to, code), "utf-8")

    _published(fill, out)
    console.print(f"exported {encoder.path} as {to} -> {out} (how to load it: {out / CARD})", markup=False)
    return out


def facts(encoder: LoadedEncoder, form: str) -> dict[str, Any]:
    """What a program must know to use the files: `encoder.json`."""
    stored, image = encoder.stored_image, encoder.identity["image"]
    return {
        "format_version": FORMAT_VERSION,
        "form": form,
        "model": encoder.identity["model"],
        "embed_dim": encoder.embed_dim,
        "image": {**image, "fit": stored.fit, "stored_size": stored.size, "filter": "bicubic"},
        "objective": encoder.objective_name,
        "logit_scale": encoder.logit_scale,
        "learned": {name: float(value) for name, value in encoder.scalars.items()},
        "parameters": {name: float(value) for name, value in read_weights(encoder.path).learned.items()},
        "text_encoder": encoder.identity["text_encoder"],
        "text": encoder.text_name,
        "checkpoint": encoder.path.name,
        "fingerprint": encoder.fingerprint,
    }


def _published(fill: Callable[[Path], None], out: Path) -> None:
    was_there = out.is_dir()  # and empty
    if was_there:
        out.rmdir()
    try:
        publish_folder(fill, out)
    except BaseException:
        if was_there:
            out.mkdir()
        raise
