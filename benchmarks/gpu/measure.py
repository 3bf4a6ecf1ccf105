"""What a measurement is and is given: whoever adds one writes a function, and a line of `measures/__init__.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Figures = dict[str, Any]  # numbers, words, and lists of such dicts, by name; as JSON takes them


class Skipped(Exception):
    """A measurement that cannot be made here; the text says why."""


@dataclass(frozen=True)
class Size:
    """How much work the measurements do."""

    name: str
    num_samples: int  # of the set that trainings read
    tower: str
    image_size: int  # pixels that the tower sees
    batch_sizes: tuple[int, int, int]  # pairs; the last one in four pieces
    images: int  # that a timed training sees, the first third of them to warm up; a multiple of every batch size
    memory_batch_sizes: tuple[int, ...]  # pairs, rising
    pairs: int  # of every objective
    many_pairs: tuple[int, ...]  # of `infonce` and `siglip`, rising
    num_ranked: tuple[int, int]  # pictures and captions
    num_captions: int  # to embed
    num_pictures: int  # to change and to decode


FULL = Size(
    "full", 16_384, "resnet50", 224, (256, 1024, 4096), 49_152, (128, 256, 512, 1024), 8_192, (32_768, 65_536),
    (40_504, 202_654), 100_000, 256,
)  # fmt: skip
SMALL = Size(
    "small", 64, "shufflenet_v2_x0_5", 64, (4, 8, 16), 64, (4, 8), 128, (256, 512), (60, 300), 64, 8,
)  # fmt: skip
SIZES = {size.name: size for size in (FULL, SMALL)}


@dataclass(frozen=True)
class Context:
    """What a measurement is given.

    Attributes:
        shards: the folder of the set that trainings read; empty where the measurement says that it reads none.
        work: a folder of its own, which is deleted afterwards.
        traces: what is put here is packed into traces.zip.
        earlier: figures of the measurements made before, by name.
    """

    shards: Path
    work: Path
    traces: Path
    device: Literal["cuda", "cpu"]
    size: Size
    earlier: Mapping[str, Figures]


@dataclass(frozen=True)
class Measure:
    """One measurement; `function` runs in a process of its own.

    Attributes:
        expects: what the figures should say, as a sentence; `is_met` is the same as a check.
        least_s: seconds that it takes on a GPU at full size; with less left it is not begun.
        holds_everywhere: the expectation is one of small sizes and CPUs, too, and judged there.
    """

    name: str
    shows: str
    expects: str
    is_met: Callable[[Figures], bool]
    least_s: int
    function: Callable[[Context], Figures]
    needs_gpu: bool = False
    reads_shards: bool = True
    holds_everywhere: bool = False
