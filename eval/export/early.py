"""What of an export can be known to fail without torch: said within a second, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from core.errors import ConfigError, StorageError, did_you_mean
from core.places import expect_no_common_folder
from eval.export import FORMS
from trainer.checkpoint.folder import resolve_checkpoint


def expect_exportable(run: Path, to: str, out: Path) -> None:
    """Raise the first mistake that can be known.

    Raises:
        ConfigError: no such form, or `out` is blank, `/`, the home folder or one above it.
        CheckpointError: there is no checkpoint.
        StorageError: `out` holds other things.
    """
    if to not in FORMS:
        raise ConfigError(f"export: no form '{to}'.{did_you_mean(to, FORMS)}")
    expect_no_common_folder(out, "export: DIR")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"export: {out} holds other things. Name a new folder, or delete that one.")
    resolve_checkpoint(run)
