"""20,000 mutated images through the builder's own workers: kept, or left out with a reason; never a crash or a hang.

The workers are real ones, 20,000 images each with pillow-simd and with Pillow. What one image may cost is bounded:
`MOST_BYTES` of memory above what the worker had, `MOST_SECONDS` of time. The seed is printed; SHARDCLIP_FAULT_SEED
replays, and a report names the image's number. More cases of the rules, without workers: tests/core/test_image.py.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from typing import Any

import hostile_images
import numpy as np
import pytest
from hostile_images import MAX_PIXELS, Batch, Findings, bombs, encoded, judge, largest, originals
from photo_folders import quick_recipe, write_photos
from PIL import Image
from rich.console import Console

from core.image import ImageError
from shard_builder.build import build_shards
from shard_builder.engines.processes import ProcessesEngine, pillow_simd_folder

MOST_SECONDS = 5.0
MOST_BYTES = 20 * MAX_PIXELS + (32 << 20)  # a picture as it is decoded, turned, laid over white; and some
PER_TASK = 250


@pytest.fixture(params=["pillow-simd", "pillow"])
def engine(request: pytest.FixtureRequest) -> Any:
    """One worker with this library."""
    if request.param == "pillow-simd" and pillow_simd_folder() is None:
        pytest.skip("pillow-simd is not installed")
    with ProcessesEngine(1, pillow_simd=request.param == "pillow-simd") as engine:
        yield engine


@pytest.mark.parametrize("count", [250, pytest.param(20_000, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])])
def test_mutated_images_are_kept_or_left_out_with_a_reason(
    engine: ProcessesEngine, count: int, fault_seed: int
) -> None:
    made = originals()
    run(engine, [Batch("sound", made)])  # what decoding costs once is not counted
    starts = range(0, count, PER_TASK)
    findings = run(engine, [Batch(f"from {n}", made, fault_seed, range(n, n + PER_TASK)) for n in starts])
    outcomes = sum((f.outcomes for f in findings), Counter())
    assert complaints(findings) == [] and outcomes.total() == count
    by_outcome: Counter[str] = Counter()
    for (_, outcome), number in outcomes.items():
        by_outcome[outcome] += number
    print(dict(by_outcome), f"slowest {max(f.slowest for f in findings)}, peak {max(f.peak_bytes for f in findings):,}")
    assert 0.05 * count < by_outcome["kept"] < 0.9 * count, "the mutations are too gentle, or too rough, to prove much"


def test_bombs_are_left_out_in_bounded_time_and_memory(engine: ProcessesEngine) -> None:
    findings = run(engine, [Batch(name, ((name, data),)) for name, data in bombs()])
    assert complaints(findings) == []
    kept = [kind for f in findings for kind, outcome in f.outcomes if outcome == "kept"]
    assert set(kept) <= {"png text", "png profile"}, "their pictures are small; what is packed beside them is not read"


def test_the_largest_permitted_images_take_bounded_memory(engine: ProcessesEngine) -> None:
    run(engine, [Batch("sound", originals())])
    for kind, data in largest():
        (findings,) = run(engine, [Batch(kind, ((kind, data),))])
        print(f"{kind}: {findings.peak_bytes / MAX_PIXELS:.1f} bytes a pixel more")
        assert complaints([findings]) == [] and findings.outcomes == {(kind, "kept"): 1}


def test_without_a_limit_on_pixels_this_suite_turns_red() -> None:
    bomb = encoded(Image.new("L", (12_000, 12_000)), "PNG")
    with ProcessesEngine(1) as engine:
        assert complaints(run(engine, [Batch("bomb", (("png", bomb),))])) == []
        (complaint,) = complaints(run(engine, [Batch("bomb", (("png", bomb),), max_pixels=2**40)]))
    assert "bytes" in complaint


@pytest.mark.parametrize("defect", [KeyError("planted"), ImageError("because", ""), 2.0])
def test_a_crash_a_nameless_reason_and_a_slow_image_turn_this_suite_red(
    defect: Exception | float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        if isinstance(defect, Exception):
            raise defect
        time.sleep(defect)

    monkeypatch.setattr(hostile_images, "prepare_image", fail)
    assert complaints([judge(Batch("planted", originals()[:1]), lambda position: None)], most_seconds=1.0)


def run(engine: ProcessesEngine, batches: list[Batch]) -> list[Findings]:
    return [findings for _, findings in engine.run(judge, batches, lambda position: None)]


def complaints(all_findings: list[Findings], most_seconds: float = MOST_SECONDS) -> list[str]:
    """What must not be, in words."""
    found = [crash for findings in all_findings for crash in findings.crashes]
    for findings in all_findings:
        seconds, image = findings.slowest
        if seconds > most_seconds:
            found.append(f"{image} took {seconds:.1f} s")
        if findings.peak_bytes > MOST_BYTES:
            found.append(f"{findings.peak_bytes:,} bytes for one of {sorted(findings.outcomes)}, slowest {image}")
    return found


RED, WHITE = (254, 0, 0), (255, 255, 255)


def red(width: int = 80, height: int = 48) -> Image.Image:
    """Red, with a blue bar at the top."""
    image = Image.new("RGB", (width, height), RED)
    image.paste((0, 0, 254), (0, 0, width, height // 3))
    return image


def upright(orientation: int) -> bytes:
    """A JPEG whose pixels are turned, so that the tag turns them back."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = Image.Transpose
    # What undoes orientation n: turns by 90 degrees undo each other, the others themselves.
    undo = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    image = red().transpose(undo[orientation]) if orientation in undo else red()
    return encoded(image, "JPEG", exif=exif, quality=95)


def cases() -> dict[str, tuple[bytes, Any]]:
    """Name -> (file, reason, or the stored picture's colour at the bottom)."""
    clear = red().convert("RGBA")
    clear.putalpha(0)
    grey = Image.new("L", (64, 64), 77)
    two = {"save_all": True, "append_images": [Image.new("RGB", (80, 48), (0, 254, 0))]}
    return {
        **{f"orientation {n}": (upright(n), RED) for n in range(1, 9)},
        "progressive": (encoded(red(), "JPEG", progressive=True, quality=95), RED),
        "grey": (encoded(grey, "JPEG"), (77, 77, 77)),
        "cmyk": (encoded(red().convert("CMYK"), "JPEG", quality=95), RED),
        "16 bit": (encoded(Image.fromarray(np.full((64, 64), 77 * 257, np.uint16)), "PNG"), (77, 77, 77)),
        "16 bit with a transparent value": (
            encoded(Image.fromarray(np.full((64, 64), 1000, np.uint16)), "PNG", transparency=1000), WHITE),
        "alpha": (encoded(clear, "PNG"), WHITE),
        "a transparent colour": (encoded(red(), "PNG", transparency=RED), WHITE),
        "a transparent grey": (encoded(grey, "PNG", transparency=77), WHITE),
        "palette": (encoded(red().quantize(4), "PNG"), RED),
        "palette with transparency": (encoded(Image.new("P", (64, 64), 0), "PNG", transparency=0), WHITE),
        "animated": (encoded(red(), "GIF", **two), RED),
        "1 px": (encoded(Image.new("RGB", (1, 1)), "PNG"), "too_small"),
        "gigapixels": (dict(bombs())["png"], "too_many_pixels"),
        "truncated": (encoded(red(600, 600), "JPEG")[:4000], "truncated"),
        "zero bytes": (b"", "unreadable"),
        "no image": (b"<html>404</html>" * 20, "unreadable"),
    }  # fmt: skip


def test_every_stated_rule_holds_in_the_workers(engine: ProcessesEngine) -> None:
    broken = []
    for name, (data, expected) in cases().items():
        (findings,) = run(engine, [Batch(name, ((name, data),))])
        ((_, outcome),) = findings.outcomes
        if isinstance(expected, str) or outcome != "kept":
            broken += [(name, outcome)] if outcome != expected else []
            continue
        ((_, stored, size),) = findings.stored
        pixel = np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"))[56, 30].astype(int)
        if np.abs(pixel - expected).max() > 6 or (size != (80, 48) and "orientation" in name):
            broken.append((name, f"{pixel} {size}"))
    assert broken == []


def test_an_extension_that_lies_is_not_believed(tmp_path: Any) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    (photos.parent / "001.jpg").write_bytes(encoded(red(), "PNG"))
    (photos.parent / "002.jpg").write_bytes(b"%PDF-1.4")
    config = quick_recipe(photos, tmp_path / "out", tmp_path / "cache", max_skipped=0.5)
    manifest = build_shards(config, Console(file=io.StringIO()))
    assert (manifest.num_samples, manifest.skipped) == (2, {"unreadable": 1})
