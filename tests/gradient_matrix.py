"""Loss and gradients of the real step, every objective on every path, against the loops of `oracles`.

make matrix        print the matrix and write it into docs/exactness.md and README.md: a minute
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gloo
import torch
from oracles import oracle_loss
from tiny_model import TinyModel, make_batch, relative_error
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from core.distributed import rank, world_size
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.nt_xent import NTXent
from trainer.objectives.objective import Objective
from trainer.objectives.siglip import SigLIP
from trainer.objectives.supcon import SupCon
from trainer.step.forward_backward import forward_backward

ROOT = Path(__file__).resolve().parent.parent
PROCESSES, CHUNKS = (1, 2, 4), (1, 3)
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}
BLOCK = 5  # rows; it divides no rank's part
SMALL_BIAS = -1.0  # at the usual -10 the negatives would hardly be seen
OBJECTIVES: dict[str, Objective] = {
    "infonce": InfoNCE(block_size=BLOCK),
    "infonce, label_smoothing 0.1": InfoNCE(0.1, block_size=BLOCK),
    "infonce, positives multi": InfoNCE(positives="multi", block_size=BLOCK),
    "infonce, positives multi, label_smoothing 0.1": InfoNCE(0.1, "multi", block_size=BLOCK),
    "infonce, max_caption_similarity 0.5": InfoNCE(max_caption_similarity=0.5, block_size=BLOCK),
    "infonce, captions all": InfoNCE(captions="all", block_size=BLOCK),
    "infonce, captions all, multi, 0.1, 0.9": InfoNCE(0.1, "multi", 0.9, "all", block_size=BLOCK),
    "siglip": SigLIP(init_temperature=0.2, init_bias=SMALL_BIAS, block_size=BLOCK),
    "siglip, positives multi": SigLIP("multi", init_temperature=0.2, init_bias=SMALL_BIAS, block_size=BLOCK),
    "nt_xent": NTXent(block_size=BLOCK),
    "supcon": SupCon(block_size=BLOCK),
    "supcon, views 1": SupCon(views=1, block_size=BLOCK),
}


@dataclass(frozen=True)
class Case:
    """One objective, on the path that the number of processes leaves open."""

    name: str
    has_text: bool  # captions come from a tower that is trained
    num_chunks: int
    dtype: torch.dtype

    @property
    def objective(self) -> Objective:
        return OBJECTIVES[self.name]

    @property
    def row(self) -> tuple[str, str]:
        """Where it stands in the table."""
        return self.name, ("trained" if self.has_text else "stored") if self.objective.needs_text else "-"


CASES = [
    Case(name, has_text, num_chunks, dtype)
    for name, objective in OBJECTIVES.items()
    for has_text in ((False, True) if objective.needs_text else (False,))
    for num_chunks in CHUNKS
    for dtype in TOLERANCES
]
Found = dict[str, Tensor]  # "loss", and the gradient of each parameter group


@cache
def expected(name: str, has_text: bool, num_rows: int, seed: int) -> Found:
    """By the oracle, over the whole batch in float64."""
    objective = OBJECTIVES[name]
    model = TinyModel(objective, torch.float64, has_text=has_text)
    batch = make_batch(num_rows, objective, torch.float64, seed, has_text)
    features, scalars = model(batch.inputs)
    loss = oracle_loss(objective, {**batch.given, **features}, scalars, batch.given)
    loss.backward()
    return {"loss": loss.detach(), **model.gradients()}


def found_by_a_rank(num_rows: int, seed: int) -> list[Found]:
    """Of every case by the step, as this rank sees them after DDP has averaged."""
    num_own = num_rows // world_size()
    own = slice(rank() * num_own, (rank() + 1) * num_own)
    return [_found(case, num_rows, seed, own) for case in CASES]


def _found(case: Case, num_rows: int, seed: int, own: slice) -> Found:
    model = TinyModel(case.objective, case.dtype, has_text=case.has_text)
    batch = make_batch(num_rows, case.objective, case.dtype, seed, case.has_text)[own]
    wrapped = DistributedDataParallel(model)
    result = forward_backward(wrapped, batch.chunks(case.num_chunks), batch.given, case.objective, {})
    return {"loss": result.loss, **model.gradients()}


def worst_errors(num_processes: int, num_rows: int, seed: int) -> dict[Case, tuple[float, str]]:
    """Of each case the largest relative error of any rank's loss or gradient, and which it is."""
    ranks = gloo.run(num_processes, found_by_a_rank, num_rows, seed)
    worst = {}
    for number, case in enumerate(CASES):
        reference = expected(case.name, case.has_text, num_rows, seed)
        mean_loss = torch.stack([seen[number]["loss"] for seen in ranks]).mean()
        errors = []
        for seen in ranks:
            found = {**seen[number], "loss": mean_loss}
            assert found.keys() == reference.keys()
            errors += [(relative_error(found[name], reference[name]), name) for name in reference]
        worst[case] = max(errors)
    return worst


def tables(errors: dict[int, dict[Case, tuple[float, str]]]) -> tuple[str, str]:
    """The whole matrix, and one line of it for each objective; float64."""
    paths = [(processes, chunks) for processes in errors for chunks in CHUNKS]
    cells: dict[tuple[str, str], list[float]] = {}
    for processes, chunks in paths:
        for case, (error, _) in errors[processes].items():
            if case.num_chunks == chunks and case.dtype == torch.float64:
                cells.setdefault(case.row, []).append(error)
    head = ["objective", "text", *(f"{p} process{'es' if p > 1 else ''}, {c} chunk{'s' * (c > 1)}" for p, c in paths)]
    rows = [[*row, *(f"{error:.0e}" for error in found)] for row, found in cells.items()]
    most: dict[str, list[float]] = {}
    for (name, _), found in cells.items():
        most.setdefault(name.split(",")[0], []).extend(found)
    short = [[f"`{name}`", str(len(found)), f"{max(found):.0e}"] for name, found in most.items()]
    return _table(head, rows), _table(["objective", "options x text x paths", "worst relative error, float64"], short)


def _table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def write(path: Path, table: str) -> None:
    """Put a table where the page has the marks for it."""
    text, marks = path.read_text(), "(<!-- gradient matrix -->\n).*?(<!-- end -->)"
    assert re.search(marks, text, re.DOTALL), f"{path} has no marks"
    path.write_text(re.sub(marks, lambda found: found[1] + table + "\n" + found[2], text, flags=re.DOTALL))


def main(num_rows: int = 24, seed: int = 1) -> None:
    errors = {processes: worst_errors(processes, num_rows, seed) for processes in PROCESSES}
    whole, short = tables(errors)
    print(whole)
    for dtype, tolerance in TOLERANCES.items():
        every: Any = [found for row in errors.values() for case, found in row.items() if case.dtype == dtype]
        print(f"{dtype}: worst {max(every)[0]:.1e} at {max(every)[1]} of {len(every)}, at most {tolerance:g}")
        assert max(every)[0] <= tolerance
    write(ROOT / "docs/exactness.md", whole)
    write(ROOT / "README.md", short)


if __name__ == "__main__":
    main()
