"""`shardclip doctor`: read recipe, shards and environment before a run; name every hindrance with its repair.

What needs no torch comes first, and ends it where something is wrong: the answer takes a second. What passes starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.errors import ConfigError, ShardclipError
from launch.early import mistakes
from trainer.config import TrainConfig

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What one check found; `repair` is empty where all is well."""

    level: Level
    what: str
    repair: str = ""


Check = Callable[[TrainConfig, int], Iterator[Finding]]  # the recipe, and the processes of all machines


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
        console.print(_table(findings))
        console.print("These were found without loading torch; mended, run it again for the rest.")
        return True
    findings = _with_torch(config, processes)
    console.print(_table(findings))
    return any(finding.level == "error" for finding in findings)


def _with_torch(config: TrainConfig, processes: int | None) -> list[Finding]:
    import torch

    from launch.doctor import CHECKS

    ranks = processes or max(1, torch.cuda.device_count())
    found = [finding for check in CHECKS for finding in findings_of(check, config, ranks)]
    return list(dict.fromkeys(found))  # weights that are not there keep several checks from their work


def findings_of(check: Check, config: TrainConfig, ranks: int) -> list[Finding]:
    """What a check found; a sentence that it raises is its last finding, and the other checks go on."""
    findings: list[Finding] = []
    try:
        findings.extend(check(config, ranks))
    except ShardclipError as error:
        findings.append(Finding("error", str(error)))
    return findings


def _table(findings: Sequence[Finding]) -> Table:
    table = Table("", "what", "repair", title="doctor", title_justify="left")
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    for finding in findings:
        table.add_row(f"[{colours[finding.level]}]{finding.level}[/]", escape(finding.what), escape(finding.repair))
    return table
