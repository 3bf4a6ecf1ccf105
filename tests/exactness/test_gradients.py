"""Every objective on every path of the step against its paper, written out in loops: `make matrix` prints the table."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from gradient_matrix import CASES, OBJECTIVES, PROCESSES, TOLERANCES, Case, expected, tables, worst_errors
from tiny_model import make_batch, relative_error

from trainer.data.names import IMAGE_ID, LABEL

SHORT = [(24, 1)]
FULL = [pytest.param(48, seed, marks=pytest.mark.slow) for seed in (2, 3, 4)]


@pytest.mark.parametrize("num_processes", PROCESSES)
@pytest.mark.parametrize(("num_rows", "seed"), [*SHORT, *FULL])
def test_loss_and_gradients_are_those_of_the_paper(num_processes: int, num_rows: int, seed: int) -> None:
    errors = worst_errors(num_processes, num_rows, seed)
    assert list(errors) == CASES
    for dtype, tolerance in TOLERANCES.items():
        error, place, case = max((*errors[case], case.row) for case in CASES if case.dtype == dtype)
        print(
            f"{num_processes} processes, {num_rows} rows, {dtype}: worst relative error {error:.1e}, {place} of {case}"
        )
        assert error <= tolerance, (place, case)


@pytest.mark.parametrize("has_text", [False, True])
def test_the_objectives_differ_so_that_no_case_hides_behind_another(has_text: bool) -> None:
    names = [name for name, objective in OBJECTIVES.items() if objective.needs_text or not has_text]
    found = {name: expected(name, has_text, 24, 1)["head"] for name in names}
    for one, other in combinations(names, 2):
        assert relative_error(found[one], found[other]) > 1e-3, (one, other)


def test_ids_and_labels_of_the_batch_repeat_within_ranks_and_over_them() -> None:
    given = make_batch(24, OBJECTIVES["infonce"]).given | make_batch(24, OBJECTIVES["supcon"]).given
    for name in (IMAGE_ID, LABEL):
        for processes in PROCESSES:
            parts = [set(part.tolist()) for part in given[name].chunk(processes)]
            assert all(len(part) < 24 // processes for part in parts), "repeats within a rank"
            assert all(parts[0] & part - {-1} for part in parts) or processes == 4, "repeats over ranks"
    assert set(given[LABEL].tolist()) == {-1, 0, 1, 2, 3, 4}


def test_the_table_has_a_row_for_each_objective_and_text() -> None:
    errors = {processes: dict.fromkeys(CASES, (1e-16, "loss")) for processes in PROCESSES}
    whole, short = tables(errors)
    rows = {case.row for case in CASES}
    assert len(whole.splitlines()) == 2 + len(rows) and len(short.splitlines()) == 2 + 4
    first = whole.splitlines()[2]
    assert first.startswith("| infonce | stored | 1e-16 |") and first.count("1e-16") == len(PROCESSES) * 2
    assert Case("nt_xent", False, 1, torch.float64).row == ("nt_xent", "-")
