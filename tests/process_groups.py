"""Who is alive in a process group: what a killed or stopped program may have left behind."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def state_of(pid: int) -> str:
    """The letter of `ps`: R running, S asleep, T stopped, Z dead and not waited for, X gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def members(group: int) -> list[int]:
    """The processes of a group; dead ones that nobody has waited for are left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, of_group, *_ = path.read_text().rsplit(")", 1)[1].split()
            if int(of_group) == group and state != "Z":
                found.append(int(path.parent.name))
    return sorted(found)
