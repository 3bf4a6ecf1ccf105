"""Where a file can be changed in one place, and what it is changed to. Makes mutants with cosmic-ray's operators.

Not changed: docstrings, type hints, decorators, what is inside an error's or another sentence, assertions.
"""

from __future__ import annotations

import ast
import difflib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import OperatorProvider
from parso.python.tree import Name

from mutants.rooms import HINTS, OPTIONS


@dataclass(frozen=True)
class Mutant:
    """A file with one change.

    Attributes:
        kind: comparison, arithmetic, constant or statement.
        before, after: the changed line or lines, without indentation.
        source: of the whole changed file.
    """

    file: str
    line: int
    kind: str
    before: str
    after: str
    source: str


class DropStatement(Operator):
    """Puts `pass` in place of a statement whose loss is not a NameError: calls, returns, raises, second assignments."""

    def mutation_positions(self, node):  # type: ignore[no-untyped-def]
        if node.type == "simple_stmt" and _can_be_dropped(node.children[0]):
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):  # type: ignore[no-untyped-def]
        first = node.children[0]
        node.children[0] = Name("pass", first.start_pos, prefix=first.get_first_leaf().prefix)
        node.children[0].parent = node
        return node

    @classmethod
    def examples(cls):  # type: ignore[no-untyped-def]
        return ()


def _from_cosmic_ray() -> dict[str, list[Operator]]:
    """Replacements that are near: `<` becomes `<=` or `>=`, `+` becomes `-`. Far ones are found too easily."""
    near = {
        "ReplaceComparisonOperator": "Lt-LtE Lt-GtE LtE-Lt LtE-Gt Gt-GtE Gt-LtE GtE-Gt GtE-Lt Eq-NotEq NotEq-Eq"
        " Is-IsNot IsNot-Is",
        "ReplaceBinaryOperator": "Add-Sub Sub-Add Mul-Div Mul-Add Div-Mul Div-FloorDiv FloorDiv-Div FloorDiv-Mul"
        " Mod-FloorDiv Mod-Add Pow-Mul RShift-LShift LShift-RShift BitOr-BitAnd BitAnd-BitOr BitXor-BitOr",
    }
    provider = OperatorProvider()
    named = {
        name: [provider[f"{name}_{pair.replace('-', '_')}"]() for pair in pairs.split()] for name, pairs in near.items()
    }
    logic = ("AddNot", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceUnaryOperator_Delete_Not")
    constants = ("NumberReplacer", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue")
    return {
        "comparison": [*named["ReplaceComparisonOperator"], *(provider[name]() for name in logic)],
        "arithmetic": [*named["ReplaceBinaryOperator"], provider["ReplaceUnaryOperator_Delete_USub"]()],
        "constant": [provider[name]() for name in constants],
        "statement": [DropStatement(), provider["ReplaceBreakWithContinue"](), provider["ReplaceContinueWithBreak"]()],
    }


OPERATORS = _from_cosmic_ray()
STARRED = ("parameters", "dictorsetmaker", "arglist", "param")  # where `*`, `**` and `/` are no arithmetic
Change = tuple[Operator, int]  # the operator, and which of its occurrences in the file


def draw(root: Path, files: tuple[str, ...], count: int, seed: str) -> list[Mutant]:
    """`count` mutants, the kinds in turn, each at a place of its own: the same ones for the same files and seed."""
    places: dict[str, list[tuple[str, list[Change]]]] = {}
    for kind in OPERATORS:
        places[kind] = [(file, changes) for file in files for changes in _places(root / file, kind)]
        random.Random(f"{seed} {kind}").shuffle(places[kind])
    drawn: list[Mutant] = []
    turns = cycle(places)
    while len(drawn) < count and any(places.values()):
        kind = next(turns)
        while places[kind]:
            file, changes = places[kind].pop()
            name = f"{seed} {file} {type(changes[0][0]).__name__} {changes[0][1]}"
            mutant = made(root, file, kind, random.Random(name).choice(changes))
            if mutant is not None:
                drawn.append(mutant)
                break
    return drawn


def made(root: Path, file: str, kind: str, change: Change) -> Mutant | None:
    """The mutant, or None where it is no Python or no change."""
    source = (root / file).read_text()
    mutated = MutationVisitor.mutate_code(source, *change)
    try:
        if mutated is None or ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(source)):
            return None
    except SyntaxError:
        return None
    before, after = source.splitlines(), mutated.splitlines()
    changed = [edit for edit in difflib.SequenceMatcher(None, before, after, False).get_opcodes() if edit[0] != "equal"]
    first, last = changed[0][1], changed[-1][2]
    until = last + len(after) - len(before)
    return Mutant(file, first + 1, kind, _text(before[first:last]), _text(after[first:until]), mutated)


def _text(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split()).replace("[ ", "[").replace("( ", "(")


def _places(path: Path, kind: str) -> list[list[Change]]:
    """For each place all changes of this kind."""
    tree, lines = get_ast(path.read_text()), path.read_text().splitlines()
    found: dict[tuple[object, ...], list[Change]] = {}
    for operator in OPERATORS[kind]:
        occurrence = 0
        for node in ast_nodes(tree):
            for start, _ in operator.mutation_positions(node):
                if not _is_out_of_bounds(node) and not any(hint in lines[start[0] - 1] for hint in HINTS):
                    found.setdefault((start, type(operator).__name__ == "AddNot"), []).append((operator, occurrence))
                occurrence += 1
    return [found[place] for place in sorted(found)]


def _is_out_of_bounds(node: parso.tree.NodeOrLeaf) -> bool:
    if node.type == "assert_stmt":
        return True
    child = node
    for parent in _ancestors(node):
        if parent.type in ("assert_stmt", "raise_stmt", "fstring", "decorator"):
            return True
        if parent.type in ("annassign", "tfpdef") and child is parent.children[1 if parent.type == "annassign" else 2]:
            return True
        if parent.type == "funcdef" and child is parent.annotation:
            return True
        if parent.type == "argument" and parent.children[0].get_code().strip() in OPTIONS:
            return True
        if parent.type == "classdef" and child is not parent.children[-1]:  # what it derives from
            return True
        if parent is node.parent and node.type == "operator" and parent.type in STARRED:
            return True
        child = parent
    return False


def _ancestors(node: parso.tree.NodeOrLeaf) -> Iterator[parso.tree.NodeOrLeaf]:
    while (node := node.parent) is not None:
        yield node


def _can_be_dropped(statement: parso.tree.NodeOrLeaf) -> bool:
    if statement.type == "expr_stmt":
        return _sets_what_is_there(statement)
    if statement.type == "return_stmt":
        function = next(parent for parent in _ancestors(statement) if parent.type == "funcdef")
        return statement.get_last_leaf().end_pos[0] < function.end_pos[0] - 1  # not the last line
    if statement.type == "keyword":
        return statement.value in ("break", "continue", "raise", "yield")
    return statement.type in ("raise_stmt", "yield_expr", "del_stmt", "atom_expr")


def _sets_what_is_there(statement: parso.tree.NodeOrLeaf) -> bool:
    """An assignment to a part of something, or to a name that has a value before."""
    function = next((parent for parent in _ancestors(statement) if parent.type == "funcdef"), None)
    targets = [leaf.strip() for leaf in statement.children[0].get_code(include_prefix=False).strip("()").split(",")]
    if not all(target.isidentifier() for target in targets):
        return not (function and function.name.value == "__init__")
    if function is None:
        return False
    bound = {
        leaf.value
        for leaf in ast_nodes(function)
        if leaf.type == "name" and leaf.is_definition() and leaf.start_pos < statement.start_pos
    }
    return set(targets) <= bound
