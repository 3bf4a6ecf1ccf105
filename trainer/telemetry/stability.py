"""Loss spikes and non-finite steps: noticed, noted, and stopped when they do not pass."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class StabilityConfig:
    max_nonfinite_in_a_row: int = 20  # fp16 looks for its loss scale with a dozen skipped steps at the start
    spike_deviations: float = 8.0  # from the median of the last 200 losses, in robust standard deviations
    spike_share: float = 0.25  # and at least this share of the median


@dataclass(frozen=True)
class Instability:
    """Something that went wrong at a step; kind: `loss spike` or `non-finite step`."""

    step: int
    kind: str
    detail: str


class StabilityWatch:
    """Looks at every step's loss and gradient norm, already reduced over the ranks, so all ranks see the same."""

    def __init__(self, config: StabilityConfig) -> None:
        self._config = config
        self._recent: deque[float] = deque(maxlen=200)
        self._in_a_row = 0
        self.num_nonfinite = 0
        self.num_spikes = 0
        self.stop_reason: str | None = None  # a sentence, once the run should end

    def look(self, first_step: int, losses: Sequence[float], grad_norms: Sequence[float]) -> list[Instability]:
        """What was wrong in the steps from `first_step` on."""
        found = []
        for step, (loss, grad_norm) in enumerate(zip(losses, grad_norms, strict=True), first_step):
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                found.append(Instability(step, "non-finite step", f"loss {loss:g}, gradient norm {grad_norm:g}"))
                self._note_nonfinite(step)
                continue
            self._in_a_row = 0
            if (limit := self._limit()) is not None and loss > limit:
                self.num_spikes += 1
                detail = f"loss {loss:.4g}, median of the last {len(self._recent)} was {median(self._recent):.4g}"
                found.append(Instability(step, "loss spike", detail))
            self._recent.append(loss)
        return found

    def _note_nonfinite(self, step: int) -> None:
        self.num_nonfinite += 1
        self._in_a_row += 1
        if self._in_a_row > self._config.max_nonfinite_in_a_row and self.stop_reason is None:
            self.stop_reason = (
                f"Step {step}: loss or gradient was not finite {self._in_a_row} times in a row. Lower optim.lr or "
                "raise optim.warmup_steps, use precision=bf16 if it was fp16, and continue from the last checkpoint."
            )

    def _limit(self) -> float | None:
        if len(self._recent) < 20:
            return None
        middle = median(self._recent)
        deviation = 1.4826 * median(abs(loss - middle) for loss in self._recent)
        return middle + max(self._config.spike_deviations * deviation, self._config.spike_share * abs(middle))
