"""k-NN, same-class retrieval and linear probe at ImageNet's size, time and memory: `python -m benchmarks.evaluations`.

1,281,167 synthetic features of width 512 in 1,000 classes. k-NN and same-class retrieval are timed on some queries in
the whole gallery, the probe on some of the pictures for some iterations; the time of all is extrapolated, and the
tables say so. Each is beside its matrix products alone. Every measurement has a process of its own. Ranks of 40,504
images and 202,654 captions are in `benchmarks.ranks`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measure import Comparison, compare, in_own_process, pin, publish
from benchmarks.memory import peak_above

NUM_CORES, EMBED_DIM, NUM_CLASSES = 2, 512, 1000
NUM_IMAGES, NUM_QUERIES, NUM_PICTURES, ITERATIONS = 1_281_167, 512, 32_768, 4
PROBE_ITERATIONS = 1000  # what a fit may take, by the recipe's default
PRODUCTS, KNN, SAME_CLASS, PROBE = "the products alone", "knn", "same_class", "linear_probe"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--queries", type=int, default=NUM_QUERIES)
    parser.add_argument("--pictures", type=int, default=NUM_PICTURES, help="of the linear probe")
    options = parser.parse_args(arguments)
    pin(NUM_CORES)
    sizes = [str(n) for n in (options.images, options.queries, options.pictures)]
    found = {name: in_own_process("benchmarks.evaluations", "measure", name, *sizes) for name in MEASURED}
    publish("evaluations", _tables(found, options), ["shardclip", "torch", "numpy"])


def _tables(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> list[Comparison]:
    images = f"{options.images:,} features of width {EMBED_DIM}, {NUM_CLASSES:,} classes, {NUM_CORES} threads"
    whole = options.images / options.queries
    tables = [
        compare(
            f"{name}: time",
            {PRODUCTS: [each["products_s"] * whole / 3600], name: [each["seconds"] * whole / 3600]},
            ours=PRODUCTS,
            less_is_better=True,
            unit="hours for all queries, extrapolated",
            input=f"{images}; extrapolated from {options.queries:,} queries ({1 / whole:.1e} of all) in the whole "
            f"gallery: {each['seconds']:.1f} s",
        )
        for name in (KNN, SAME_CLASS)
        for each in (found[name],)
    ]
    probe, share = found[PROBE], options.images / options.pictures
    tables.append(
        compare(
            f"{PROBE}: time",
            {PRODUCTS: [probe["products_s"] * share], PROBE: [probe["seconds"] / ITERATIONS * share]},
            ours=PRODUCTS,
            less_is_better=True,
            unit="s for one iteration over all pictures, extrapolated",
            input=f"{images}, float64; extrapolated from {ITERATIONS} iterations of L-BFGS with {options.pictures:,} "
            f"pictures: {probe['seconds']:.1f} s. A fit takes up to {PROBE_ITERATIONS:,}",
        )
    )
    peaks = {name: [each["peak_bytes"] / 2**20] for name, each in found.items()}
    inputs = f"{images} ({options.images * EMBED_DIM * 4 / 2**20:,.0f} MiB); the probe at {options.pictures:,} of them"
    tables.append(
        compare("Memory", peaks, ours=KNN, less_is_better=True, unit="MiB at most above the features", input=inputs)
    )
    return tables


def _measure(name: str, num_images: int, num_queries: int, num_pictures: int) -> dict[str, Any]:
    """Runs in a process of its own."""
    count = num_pictures if name == PROBE else num_images
    features, labels = _features(count)
    small = slice(0, 3000)
    MEASURED[name](features[small], labels[small], 100)  # loads code, starts matrix libraries
    products = _products(features, num_queries) if name != PROBE else _probe_products(features)
    start = time.perf_counter()
    products()
    products_s = time.perf_counter() - start
    start = time.perf_counter()
    _, peak_bytes = peak_above(lambda: MEASURED[name](features, labels, num_queries))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "products_s": products_s, "peak_bytes": peak_bytes}


def _knn(features: np.ndarray, labels: np.ndarray, num_queries: int) -> None:
    from eval.evaluations.knn import knn_are_right

    sides = (features[:num_queries], labels[:num_queries], features, labels)
    knn_are_right(*sides, ks=(20, 1), leave_one_out=True)


def _same_class(features: np.ndarray, labels: np.ndarray, num_queries: int) -> None:
    from eval.evaluations.same_class import nearest_of_class

    sides = (features[:num_queries], labels[:num_queries], features, labels)
    nearest_of_class(*sides, 10, leave_one_out=True)


def _linear_probe(features: np.ndarray, labels: np.ndarray, num_queries: int) -> None:
    from eval.logistic_regression import fit

    fit(features, labels, NUM_CLASSES, 1e-4, most_iterations=ITERATIONS, tolerance=1e-12)


MEASURED: dict[str, Callable[[np.ndarray, np.ndarray, int], None]] = {
    KNN: _knn,
    SAME_CLASS: _same_class,
    PROBE: _linear_probe,
}


def _products(features: np.ndarray, num_queries: int) -> Callable[[], None]:
    """Of the queries with the gallery, in the same tiles."""
    import torch

    from eval.nearest import CPU_TILE, MOST_QUERIES

    gallery = torch.from_numpy(features).split(CPU_TILE)
    queries = torch.from_numpy(features[:num_queries]).split(MOST_QUERIES)
    room = torch.empty(MOST_QUERIES * CPU_TILE)

    def multiply() -> None:
        for block in queries:
            for tile in gallery:
                torch.mm(block, tile.T, out=room[: len(block) * len(tile)].view(len(block), len(tile)))

    return multiply


def _probe_products(features: np.ndarray) -> Callable[[], None]:
    """Logits of one pass, and the gradient's product, in blocks as large."""
    import torch

    rows = torch.from_numpy(features).split(2048)
    weights = torch.zeros(NUM_CLASSES, EMBED_DIM, dtype=torch.float64)

    def multiply() -> None:
        for block in rows:
            wide = block.double()
            (wide @ weights.T).T @ wide

    return multiply


def _features(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`(count, 512)` unit vectors around those of 1,000 classes, and their classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(NUM_CLASSES, size=count)
    centres = random.standard_normal((NUM_CLASSES, EMBED_DIM), dtype=np.float32)
    rows = random.standard_normal((count, EMBED_DIM), dtype=np.float32)
    rows *= 2
    for part in range(0, count, 4096):  # in parts: what is freed here would be used again unseen
        block = rows[part : part + 4096]
        block += centres[labels[part : part + 4096]]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return rows, labels


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["measure", name, *sizes]:
            print(json.dumps(_measure(name, *map(int, sizes))))
        case arguments:
            main(arguments)
