"""The door for Python: `import shardclip`, then `load`, `open_shards`, `build`, `train`, `evaluate`, `results`.

Importing it loads nothing heavy; what a name needs is loaded when the name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.errors import ShardclipError
    from shardclip.encoder import Encoder, load
    from shardclip.measured import Results, results
    from shardclip.recipes import build, evaluate, train
    from shardclip.shards import Sample, Shards, open_shards

_HOMES = {
    "Encoder": "shardclip.encoder",
    "Results": "shardclip.measured",
    "Sample": "shardclip.shards",
    "ShardclipError": "core.errors",
    "Shards": "shardclip.shards",
    "build": "shardclip.recipes",
    "evaluate": "shardclip.recipes",
    "load": "shardclip.encoder",
    "open_shards": "shardclip.shards",
    "results": "shardclip.measured",
    "train": "shardclip.recipes",
}
__all__ = [
    "Encoder",
    "Results",
    "Sample",
    "ShardclipError",
    "Shards",
    "build",
    "evaluate",
    "load",
    "open_shards",
    "results",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shardclip' has no attribute '{name}'. It has {', '.join(__all__)}.")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return __all__
