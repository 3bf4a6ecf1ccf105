"""`shardclip doctor`: read recipe, shards and environment before a run; name every hindrance with its repair.

What needs no torch comes first, and ends it where something is wrong: the answer takes a second. What passes starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape

from core.errors import ConfigError
from launch.early import mistakes
from trainer.config import TrainConfig

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What one check found; `repair` is empty where all is well."""

    level: Level
    what: str
    repair: str = ""


_LEVEL_WIDTH = len("warning") + 2


def examine(config: TrainConfig, processes: int | None, console: Console) -> bool:
    """Print every finding; returns whether one of them is an error.

    Args:
        processes: None: one per GPU, or one on the CPU.

    Raises:
        ConfigError: no number of processes.
    """
    if processes is not None and processes < 1:
        raise ConfigError(f"--processes {processes}: a machine needs at least one.")
    findings = [Finding("error", sentence) for sentence in mistakes(config, processes)]
    if findings:
        _say(findings, console)
        console.print("These were found without loading torch; mended, run it again for the rest.", soft_wrap=True)
        return True
    findings = _with_torch(config, processes)
    _say(findings, console)
    return any(finding.level == "error" for finding in findings)


def _with_torch(config: TrainConfig, processes: int | None) -> list[Finding]:
    import torch

    from launch.doctor import CHECKS, Examined, findings_of

    examined = Examined(config, processes or max(1, torch.cuda.device_count()))
    found = [finding for check in CHECKS for finding in findings_of(check, examined)]
    return list(dict.fromkeys(found))  # weights that are not there keep several checks from their work


def _say(findings: Sequence[Finding], console: Console) -> None:
    """A line for each finding, and one for its repair: never cut or broken, so that a command can be copied."""
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    for finding in findings:
        level = f"[{colours[finding.level]}]{finding.level:<{_LEVEL_WIDTH}}[/]"
        console.print(f"{level}{escape(finding.what)}", soft_wrap=True, highlight=False)
        if finding.repair:
            console.print(f"{' ' * _LEVEL_WIDTH}{escape(finding.repair)}", soft_wrap=True, highlight=False)
