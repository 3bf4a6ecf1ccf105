"""Builds that are interrupted once their first shard is noted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from shard_builder import build_state


@contextmanager
def interrupted_after_a_shard() -> Iterator[None]:
    """Within, a build ends by Ctrl-C when it has noted a shard; it must come to that."""
    save = build_state.save_result

    def save_then_stop(*given: Any) -> None:
        save(*given)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shard_builder.build.save_result", save_then_stop)
        yield
