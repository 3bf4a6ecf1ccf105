"""Give shard sets a frozen encoder's caption embeddings, as a text column: `shardclip embed SET --encoder minilm`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from core.columns import TEXT, ColumnHead
from core.config import Choice
from shard_builder.column import CACHE_DIR, make_columns
from shard_builder.columns.text import text_column


def embed_shards(
    urls: str | Sequence[str],
    text_encoder: Choice,
    batch_size: int = 256,
    cache_dir: Path = CACHE_DIR,
    console: Console | None = None,
) -> list[ColumnHead]:
    """The same as `shardclip column text`: killed, it goes on; an equal column is left alone.

    Raises:
        WeightsError: the encoder is not on this machine.
        ManifestError: a set is not there, or has another column of that name.
    """
    urls = (urls,) if isinstance(urls, str) else urls
    options = {"encoder": text_encoder.name, "batch_size": batch_size, **text_encoder.options}
    return make_columns({TEXT: text_column}, Choice(TEXT, options), urls, cache_dir, console)
