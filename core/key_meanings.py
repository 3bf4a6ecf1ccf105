"""What the settings of a recipe mean, from where they are declared: comments of a dataclass, `Args:` of a function."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Callable
from typing import Any

_ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*): (?P<text>.*)")
_SECTIONS = ("Args:", "Attributes:")


def meanings_of(part: Callable[..., Any]) -> dict[str, str]:
    """The meaning of each option of a dataclass, a class or a function, by name; what nobody has said is absent.

    A field's comment stands behind it or in the lines above it. An entry of a docstring counts where there is none.
    """
    said: dict[str, str] = {}
    for owner in reversed(part.__mro__) if isinstance(part, type) else [part]:
        if owner is object:
            continue
        said |= _of_docstring(inspect.cleandoc(owner.__doc__ or ""))
        if dataclasses.is_dataclass(owner):
            said |= _of_comments(owner)
        elif isinstance(owner, type) and "__init__" in vars(owner):
            said |= _of_docstring(inspect.cleandoc(vars(owner)["__init__"].__doc__ or ""))
    return said


def summary_of(part: Callable[..., Any]) -> str:
    """The first sentence of a part's docstring, or of its file's where it has none of its own."""
    text = inspect.cleandoc(part.__doc__ or inspect.getdoc(inspect.getmodule(part)) or "")
    return " ".join(text.split("\n\n")[0].split())


def _of_comments(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.ClassDef)
    comments, code = _comments(source)
    said = {}
    for node in tree.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        lines, above = [comments.get(node.end_lineno or node.lineno, "")], node.lineno - 1
        if not lines[0]:
            while above in comments and above not in code:
                lines.insert(0, comments[above])
                above -= 1
        if text := " ".join(line for line in lines if line):
            said[node.target.id] = text
    return said


def _comments(source: str) -> tuple[dict[int, str], set[int]]:
    """Comments by line, and the lines that hold code as well."""
    comments: dict[int, str] = {}
    code: set[int] = set()
    blank = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ").strip()
        elif token.type not in blank:
            code |= set(range(token.start[0], token.end[0] + 1))
    return comments, code


def _of_docstring(text: str) -> dict[str, str]:
    """The entries `name: meaning` of its sections; longer ones go on in lines that stand further in."""
    said: dict[str, str] = {}
    names: list[str] = []
    inside, entry_indent = False, 0
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() in _SECTIONS:
            inside, entry_indent, names = True, indent + 4, []
        elif inside and line.strip() and indent < entry_indent:
            inside = False
        elif inside and indent == entry_indent and (entry := _ENTRY.fullmatch(line.strip())):
            names = entry["names"].split(", ")
            said |= dict.fromkeys(names, entry["text"])
        elif inside and indent > entry_indent:
            said |= {name: f"{said[name]} {line.strip()}" for name in names}
    return said
