"""The mutants themselves: where they are made, that draws repeat, and what counts as found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="cosmic-ray is installed by `make mutants`")

from mutants.places import draw

PRODUCT = '''"""Says 1 + 1."""

def between(low: int | None, value: int = 3) -> bool:
    """3 < 4."""
    assert value < 100
    if value < 0:
        raise ValueError(f"{value + 1} is below {2 - 2}")
    found = []
    for step in range(value):
        found.append(step * 2)
    # what was found, in
    order = list(zip(found, range(value), strict=True))
    return len(order) == value
'''
TRIAL = """
import sys
from pathlib import Path
from mutants.places import Mutant
from mutants.rooms import Room
from mutants.trial import copied, try_mutant
root, room = Path(sys.argv[1]), Room(("product.py",), ("test_product.py",), without=("test_that_is_left_out",))
for change in (("return a + b", "return b + a"), ("a + b", "a - b"), ("return a + b", "while True: pass")):
    source = (root / "product.py").read_text().replace(*change)
    with copied(root) as copy:
        print(try_mutant(copy, room, Mutant("product.py", 2, "", *change, source), timeout_s=10).found_by)
"""


def test_places_are_code_that_runs_and_not_words_hints_or_assertions(tmp_path: Path) -> None:
    (tmp_path / "product.py").write_text(PRODUCT)
    drawn = draw(tmp_path, ("product.py",), 100, "0")
    assert {(m.line, m.kind) for m in drawn} == {
        (3, "constant"),
        (6, "comparison"),
        (6, "constant"),
        (7, "statement"),
        (10, "statement"),
        (10, "arithmetic"),
        (10, "constant"),
        (13, "comparison"),
    }
    for mutant in drawn:
        changed = [
            (before, after)
            for before, after in zip(PRODUCT.splitlines(), mutant.source.splitlines(), strict=True)
            if before != after
        ]
        assert len(changed) == 1 and changed[0][0].strip() == mutant.before


def test_the_same_seed_draws_the_same_mutants_and_another_one_others(tmp_path: Path) -> None:
    (tmp_path / "product.py").write_text(PRODUCT)
    draws = [[m.source for m in draw(tmp_path, ("product.py",), 5, seed)] for seed in ("0", "0", "1")]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) == 5


def test_a_failure_or_a_hang_is_found_what_changes_nothing_survives_and_the_checkout_stays(tmp_path: Path) -> None:
    product = "def total(a, b):\n    return a + b\n"
    (tmp_path / "product.py").write_text(product)
    (tmp_path / "test_product.py").write_text(
        "from product import total\n"
        "def test_that_is_left_out(): assert False\n"
        "def test_total(): assert total(2, 3) == 5\n"
    )
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    done = subprocess.run(
        [sys.executable, "-c", TRIAL, str(tmp_path)],
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["None", "test_product.py::test_total", "hang"], done.stderr
    assert (tmp_path / "product.py").read_text() == product
