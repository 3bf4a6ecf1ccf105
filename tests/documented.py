"""Each `key=value` that docs, README and recipes' comments tell people to write, and the command it stands behind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_OF_PYTHON = ("extending.md", "python.md", "mutants.md", "log.md")  # code for those who change it, and history
_OTHER_LANGUAGES = ("```python", "```html")
_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*=\S*")
_CODE = re.compile(r"`([^`\n]+)`")
_CALL = re.compile(r"\w\(")  # of Python, whose arguments look alike
_COMMAND = re.compile(r"shardclip (\w[\w-]*)")


@dataclass(frozen=True)
class Written:
    """Some of them.

    Attributes:
        file: where; below the repository.
        line: its number.
        verb: of the command that they are part of; "" where they stand alone.
        words: `key=value`, those that stand together.
    """

    file: str
    line: int
    verb: str
    words: tuple[str, ...]


def overrides() -> list[Written]:
    """All of them, in order."""
    pages = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in _OF_PYTHON)]
    recipes = sorted((ROOT / "configs").rglob("*.yaml"))
    found = [written for page in pages for written in _of_page(page)]
    return found + [written for recipe in recipes for written in _of_comments(recipe)]


def _of_page(page: Path) -> list[Written]:
    found, fence = [], ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            fence = "" if fence else line
        if fence in _OTHER_LANGUAGES:
            continue
        pieces = [line] if fence or line.startswith("    ") else _CODE.findall(line)
        for piece in pieces:
            if not _CALL.search(piece):
                found += _of_code(piece, page, number)
    return found


def _of_comments(recipe: Path) -> list[Written]:
    found = []
    for number, line in enumerate(recipe.read_text().splitlines(), 1):
        _, mark, comment = line.partition("#")
        if mark:
            found += _of_code(comment, recipe, number)
    return found


def _of_code(text: str, file: Path, line: int) -> list[Written]:
    command = _COMMAND.search(text)
    words = [word.rstrip(".,;:)") for word in text.split() if _OVERRIDE.fullmatch(word) and word != "key=value"]
    return [Written(str(file.relative_to(ROOT)), line, command[1] if command else "", tuple(words))] if words else []
