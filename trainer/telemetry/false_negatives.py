"""Whether a run pushes apart what belongs together, and what to do then; asked of a window's figures, on the host."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.telemetry import names
from trainer.trackers.tracker import Metric

MOST_ROWS = 0.2  # share of rows


def false_negative_warning(metrics: Mapping[str, Metric]) -> str | None:
    """A sentence where too many rows of a batch count a caption that says the same as their own as a negative."""
    share = metrics.get(names.COUNTED_FALSE_NEGATIVES)
    if share is None or float(share) <= MOST_ROWS:
        return None
    return (
        f"{100 * float(share):.0f} % of a batch's rows have a negative that says the same as their own caption (cosine "
        "above 0.95): it is pushed apart from what it shows. Leave such captions out with "
        "objective.max_caption_similarity=0.95 (objective infonce), or lower global_batch_size; where captions name "
        "classes, build the set with the image_folder reader, or train by labels (objective supcon)."
    )
