"""The kinds of columns by name, and the words of `shardclip column`. A new kind: its file, and a line in the table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from core.column_kind import ColumnKind
from core.columns import FEATURES, LABELS, TEXT, TOKENS, TOPICS, column_names
from core.config import Choice
from core.errors import ConfigError, did_you_mean
from core.manifest import MANIFEST_NAME, load_manifest
from core.storage import exists, join
from shard_builder.column import column_table, make_columns
from shard_builder.columns.labels import label_column
from shard_builder.columns.text import text_column
from shard_builder.columns.tokens import token_column
from shard_builder.columns.topics import topic_column
from trainer.data.feature_column import feature_column

COLUMNS: dict[str, ColumnKind] = {
    FEATURES: feature_column,
    LABELS: label_column,
    TEXT: text_column,
    TOKENS: token_column,
    TOPICS: topic_column,
}
LIST = "list"
_OPTION = re.compile(r"[A-Za-z_]\w*=")


def column(words: Sequence[str], cache_dir: Path, console: Console) -> None:
    """Do what `shardclip column KIND SET [SET ...] [key=value ...]` asks for.

    Raises:
        ConfigError: no such kind, no set, or a key stands twice.
    """
    options = dict[str, str]()
    for word in words:
        if _OPTION.match(word):
            key, _, value = word.partition("=")
            if key in options:
                raise ConfigError(f"command line: '{key}=' stands twice. Give it once.")
            options[key] = value
    kind, *urls = [word for word in words if not _OPTION.match(word)] or [LIST]
    if kind not in COLUMNS and kind != LIST and exists(join(kind, MANIFEST_NAME)):
        kind, urls = LIST, [kind, *urls]
    if kind not in COLUMNS and kind != LIST:
        raise ConfigError(f"column: unknown kind '{kind}'.{did_you_mean(kind, [*COLUMNS, LIST])}")
    if not urls:
        raise ConfigError(f"column {kind}: name a shard set, as in `shardclip column {kind} data/coco2014-train`.")
    if kind == LIST:
        list_columns(urls, console)
    else:
        make_columns(COLUMNS, Choice(kind, options), urls, cache_dir, console)


def list_columns(urls: Sequence[str], console: Console) -> None:
    """Print the columns of each set."""
    for url in urls:
        load_manifest(url)
        if column_names(url):
            console.print(column_table(url))
        else:
            console.print(f"{url}: has no columns. `shardclip column` makes them: {', '.join(COLUMNS)}.", markup=False)
