"""Labels: one class number per sample, from the samples' own json or from a file by key or image_id."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from core.column_kind import ColumnPlan, ColumnWork, by_shard
from core.columns import (
    LABELS,
    NO_NUMBER,
    ColumnValues,
    column_names,
    column_url,
    is_whole,
    load_head,
    publish_column,
)
from core.errors import DataError, ManifestError
from core.shard_set import ShardSet
from core.storage import read_bytes, remove
from shard_builder.column import column_lock, head_of
from shard_builder.progress import progress_bar

ID_NAMES = ("key", "image_id")
LABEL = "label"
FROM_JSON = {"from": "json", "file": None}  # the origin of labels that the sets have themselves


@dataclass(frozen=True)
class LabelFile:
    """The rows of a label file."""

    by: str  # key | image_id
    labels: Mapping[str, str | None]  # by key or image_id; None: said to have none
    sha256: str


@dataclass(frozen=True)
class Found:
    """The label of each sample, and what was not matched."""

    labels: list[str | None]
    num_unknown: int = 0  # rows of the file that no sample has


def label_column(work: ColumnWork, name: str = "", file: str = "", classes: tuple[str, ...] = ()) -> ColumnPlan:
    """One class number per sample, `<i4`; -1: none.

    Args:
        name: of the column; default `labels`.
        file: `.csv` with a header, or `.jsonl`: `key` or `image_id`, and `label`; "": the samples' own json.
        classes: their order; default: the set's own, else sorted.

    Raises:
        DataError: the file lacks a column, contradicts itself or fits no sample; or a label is not in `classes`.
    """
    origin: dict[str, Any] = dict(FROM_JSON)
    if file:
        rows = read_labels(file, read_bytes(file))
        origin = {"from": rows.by, "file": {"name": file.rsplit("/", 1)[-1], "sha256": rows.sha256}}
        found = match_labels(work, rows, file)
    else:
        found = own_labels(work)
        if not any(label is not None for label in found.labels):
            raise DataError(f"{work.url}: no sample's json has a label. Give them in a file: file=labels.csv.")
    if not any(label is not None for label in found.labels):
        raise DataError(f"{file}: gives no sample of {work.url} a label. Fill its column `label`.")
    order = classes or (() if file else work.shard_set.manifests[0].classes)
    return plan_of(name or LABELS, work.shard_set, found, order, origin, work.url)


def plan_of(
    name: str, shard_set: ShardSet, found: Found, classes: Sequence[str], origin: Mapping[str, Any], where: str
) -> ColumnPlan:
    """The column of these labels; without `classes` these are sorted."""
    known = {label for label in found.labels if label is not None}
    order = tuple(classes) or tuple(sorted(known))
    if len(set(order)) < len(order):
        raise DataError(f"{where}: classes names '{next(c for c in order if order.count(c) > 1)}' twice.")
    if strangers := sorted(known - set(order)):
        raise DataError(f"{where}: label '{strangers[0]}' is not among the {len(order)} classes. Add it to classes=.")
    place = {label: number for number, label in enumerate(order)}
    numbers = np.array([NO_NUMBER if label is None else place[label] for label in found.labels], "<i4")
    unlabelled = int((numbers == NO_NUMBER).sum())
    figures = {
        "labelled": len(numbers) - unlabelled,
        "unlabelled": unlabelled,
        "unknown_rows": found.num_unknown,
        "classes": len(order),
    }
    notes = []
    if found.num_unknown:
        notes.append(f"[yellow]{found.num_unknown:,} rows[/] of the file belong to no sample of {escape(where)}.")
    if unlabelled:
        notes.append(f"[yellow]{unlabelled:,} of {len(numbers):,} samples[/] of {escape(where)} have no label: -1.")
    return ColumnPlan(
        name=name,
        kind=LABELS,
        per="sample",
        dtype="<i4",
        shape=(),
        origin=origin,
        make=lambda: ColumnValues(by_shard(shard_set, numbers), figures=figures),
        classes=order,
        notes=tuple(notes),
    )


def lacks_labels(shard_set: ShardSet) -> bool:
    """Whether the labels that the set's build has published are gone or damaged; labels of a file are not its own."""
    url = shard_set.urls[0]
    if not shard_set.manifests[0].classes:
        return False
    if LABELS not in column_names(url):
        return True
    try:
        head = load_head(url, LABELS)
    except ManifestError:
        return False  # altered: nobody knows whose it is
    return dict(head.origin) == FROM_JSON and not is_whole(url, head)


def publish_labels(shard_set: ShardSet, cache_dir: Path, console: Console) -> None:
    """The labels of a set that is being built, before its manifest, or that lost them; what is there is replaced."""
    work = ColumnWork(shard_set, [shard_set], cache_dir, partial(progress_bar, console))
    plan = plan_of(LABELS, shard_set, own_labels(work), shard_set.manifests[0].classes, FROM_JSON, work.url)
    with column_lock(work.url, plan.name, cache_dir):
        remove(column_url(work.url, plan.name))
        head = head_of(plan, shard_set.fingerprints[0])
        publish_column(work.url, head, [entry.name for entry in shard_set.manifests[0].shards], plan.make())


def read_labels(file: str, data: bytes) -> LabelFile:
    """The rows of a `.csv` or `.jsonl`.

    Raises:
        DataError: a column is missing, a line cannot be read, or a sample has two labels; names the line.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is no UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8.") from None
    rows = _json_rows(file, text) if file.endswith((".jsonl", ".json")) else _csv_rows(file, text)
    by, labels = "", dict[str, str | None]()
    for line, row in rows:
        by = by or _id_name(file, row)
        if row.get(by) in (None, "") or LABEL not in row:
            raise DataError(
                f"{file}: line {line} has no '{by if row.get(by) in (None, '') else LABEL}'. Mend that line."
            )
        own, label = str(row[by]), None if row[LABEL] in (None, "") else str(row[LABEL])
        if labels.get(own, label) != label:
            raise DataError(f"{file}: line {line}: {by} '{own}' is '{label}', a line before it says '{labels[own]}'.")
        labels[own] = label
    if not labels:
        raise DataError(f"{file}: has no rows. A row is `key` or `image_id`, and `label`.")
    return LabelFile(by, labels, hashlib.sha256(data).hexdigest())


def match_labels(work: ColumnWork, rows: LabelFile, file: str) -> Found:
    """The label of each sample by the file.

    Raises:
        DataError: not one row fits, or an id of the file means several samples that are not of one image.
    """
    samples_of = _samples_by(work, rows.by)
    labels: list[str | None] = [None] * len(work.shard_set)
    for own, label in rows.labels.items():
        owners = samples_of.get(own, {})
        if len(owners) > 1:
            raise DataError(
                f"{file}: {rows.by} '{own}' stands for samples of {len(owners)} kinds in {work.url} "
                f"({', '.join(sorted(owners))}). Label by {'image_id' if rows.by == 'key' else 'key'}."
            )
        for sample in (sample for samples in owners.values() for sample in samples):
            labels[sample] = label
    unknown = [own for own in rows.labels if own not in samples_of]
    if len(unknown) == len(rows.labels):
        raise DataError(
            f"{file}: none of its {len(rows.labels):,} {rows.by}s is in {work.url}: the file has '{unknown[0]}', "
            f"the set '{next(iter(samples_of), '(none)')}'. Label by the set's own (`shardclip preview` shows some)."
        )
    return Found(labels, len(unknown))


def own_labels(work: ColumnWork) -> Found:
    """The labels in the samples' json."""
    labels: list[str | None] = []
    with work.progress("samples", len(work.shard_set)) as show:
        for sample in range(len(work.shard_set)):
            label = work.shard_set.info(sample).get(LABEL)
            labels.append(None if label in (None, "") else str(label))
            show(sample + 1)
    return Found(labels)


def _samples_by(work: ColumnWork, by: str) -> dict[str, dict[str, list[int]]]:
    """Key or image_id -> samples, by what keeps equal ids apart: the shard of a key, the source of an image."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    shard_set, shards = work.shard_set, [entry.name for entry in work.shard_set.manifests[0].shards]
    with work.progress("samples", len(shard_set)) as show:
        for sample in range(len(shard_set)):
            if by == "key":
                own, apart = shard_set.key(sample), shards[shard_set.locate(sample)[0]]
            else:
                info = shard_set.info(sample)
                own, apart = str(info.get("image_id") or info.get("url") or ""), str(info.get("source") or "")
            if own:
                found[own][apart].append(sample)
            show(sample + 1)
    return found


def _id_name(file: str, row: Mapping[str, Any]) -> str:
    present = [name for name in ID_NAMES if name in row]
    if not present or LABEL not in row:
        columns = ", ".join(f"'{column}'" for column in row)
        raise DataError(f"{file}: has the columns {columns}. Name them `key` or `image_id`, and `label`.")
    return present[0]


def _csv_rows(file: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"{file}: its header names '{twice[0]}' twice. Give each column its own name.")
        for row in reader:
            if None in row:
                raise DataError(f"{file}: line {reader.line_num} has more cells than the header. Quote commas.")
            yield reader.line_num, {key.strip(): value and value.strip() for key, value in row.items()}
    except csv.Error as error:
        raise DataError(f"{file}: line {reader.reader.line_num} is no CSV ({error}).") from None


def _json_rows(file: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except ValueError as error:
            raise DataError(f"{file}: line {line} is no JSON ({error}). A line is one object.") from None
        if not isinstance(row, dict):
            raise DataError(f"{file}: line {line} is no JSON object. A line is one object.")
        yield line, row
