"""What of a training can be known to fail before torch is loaded: said within a second, by `train` and by `doctor`."""

from __future__ import annotations

from collections.abc import Callable

from core.errors import ShardclipError
from eval.best import check_best_by
from eval.evaluations import chosen
from trainer.config import TrainConfig
from trainer.early import CHECKS, check_tracking
from trainer.telemetry import names


def check_best(config: TrainConfig, processes: int | None) -> None:
    """`best_by` is a figure that some validation measures; of which data, the run finds out."""
    figures = [
        names.val(figure) for evaluation in chosen(config.evaluations).values() for figure in evaluation.figures()
    ]
    check_best_by(config.best_by, [names.VAL_LOSS, *figures])


EARLY: tuple[Callable[[TrainConfig, int | None], None], ...] = (*CHECKS, check_best)


def expect_startable(config: TrainConfig, processes: int | None, machines: int = 1) -> None:
    """Raise the first mistake that can be known.

    Args:
        processes: of all machines; None where the number of GPUs, which torch knows, decides.
        machines: of several, rank 0's alone opens trackers. Rank 0 asks for them then, when it can tell the others:
            a machine that ends here leaves them waiting.

    Raises:
        ShardclipError: in one sentence.
    """
    for check in EARLY:
        if machines == 1 or check is not check_tracking:
            check(config, processes)


def mistakes(config: TrainConfig, processes: int | None) -> list[str]:
    """All mistakes that can be known, each as a sentence."""
    found = []
    for check in EARLY:
        try:
            check(config, processes)
        except ShardclipError as error:
            found.append(str(error))
    return found
