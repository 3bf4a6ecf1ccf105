"""Recall of 5,000 images and 25,014 captions: time, peak memory, and who agrees: `python -m benchmarks.recall`.

Against CLIP_benchmark's own `evaluate` and open_clip's own `get_clip_metrics`, both from `make peers`, on one core. The
features are synthetic: images around topics, captions around their image and the topic, texts apart from images as in
CLIP (Liang 2022). Every measurement has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measure import Comparison, compare, in_own_process, pin, publish, take_turns
from benchmarks.memory import peak_above

EMBED_DIM, NUM_IMAGES = 512, 5000
CAPTIONS_OF = {6: 12, 7: 1}  # of COCO val2017's 5,000 images, by number of captions; the others have 5
KS = (1, 5, 10)
SHARDCLIP, CLIP_BENCHMARK, OPEN_CLIP = "shardclip", "CLIP_benchmark", "open_clip"
Features = tuple[np.ndarray, np.ndarray, np.ndarray]  # images (N, D), texts (T, D), image of each text (T,)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    pin()
    measure = partial(_in_turn, num_images=options.images, rounds=options.rounds)
    comparisons = [
        *measure("all captions", [SHARDCLIP, CLIP_BENCHMARK]),
        *measure("one caption per image", [SHARDCLIP, CLIP_BENCHMARK, OPEN_CLIP]),
        _as_pairs(options.images // 5),
    ]
    publish("recall", comparisons, ["shardclip", "clip-benchmark", "open-clip-torch", "torch", "numpy"])


def _in_turn(protocol: str, contenders: list[str], num_images: int, rounds: int) -> list[Comparison]:
    """Time and memory of each contender, and in the notes the six recalls of each."""
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}

    def once(name: str) -> float:
        seen[name].append(_apart(name, protocol, num_images))
        return seen[name][-1]["seconds"]

    # Each process warms itself up; a minute or more of CLIP_benchmark need not be run for that.
    seconds = take_turns({name: partial(once, name) for name in contenders}, rounds, warm_up=False)
    recalls = {name: runs[-1]["recalls"] for name, runs in seen.items()}
    peaks = {name: [run["peak_bytes"] / 2**20 for run in runs] for name, runs in seen.items()}
    num_texts = seen[contenders[0]][0]["num_texts"]
    shared = {
        "ours": SHARDCLIP,
        "less_is_better": True,
        "input": f"{num_images:,} images x {num_texts:,} captions, {EMBED_DIM} dimensions, {protocol}; one core",
        "notes": {name: _spoken(figures) for name, figures in recalls.items()},
    }
    agreement = {
        f"largest_difference_of_the_six_recalls_to_{name}": f"{_difference(recalls[SHARDCLIP], recalls[name]):.1e}"
        for name in contenders[1:]
    }
    return [
        compare(f"Recall@1/5/10 both ways, {protocol}: time", seconds, unit="s", **shared, **agreement),
        compare(f"Recall@1/5/10 both ways, {protocol}: memory", peaks, unit="MiB at most above the features", **shared),
    ]


def _as_pairs(num_images: int) -> Comparison:
    """Five captions per image as open_clip's validation gets them: as pairs, the image repeated for each caption."""
    protocols = {SHARDCLIP: "all captions", CLIP_BENCHMARK: "all captions", OPEN_CLIP: "pairs"}
    measured = {name: _apart(name, protocol, num_images) for name, protocol in protocols.items()}
    recalls = {name: result["recalls"] for name, result in measured.items()}
    first = {name: [100 * figures["image_to_text"][0]] for name, figures in recalls.items()}
    comparison = compare(
        "open_clip's metrics with several captions per image",
        first,
        ours=SHARDCLIP,
        unit="image to text R@1, %",
        input=f"{num_images:,} images x {measured[SHARDCLIP]['num_texts']:,} captions",
        notes={name: _spoken(figures) for name, figures in recalls.items()},
        on_images_x_captions_as_they_are=f"get_clip_metrics ends with: {_refusal()}",
        why="open_clip counts one caption as right for an image, the others of that image as wrong; and its copies of "
        "an image tie with each other",
    )
    return replace(comparison, ratio="shardclip / this: 1 is agreement")


def _apart(name: str, protocol: str, num_images: int) -> dict[str, Any]:
    return in_own_process("benchmarks.recall", "measure", name, protocol, str(num_images), peers=True)


def _measure(name: str, protocol: str, num_images: int) -> dict[str, Any]:
    """Runs in a process of its own."""
    prepare = PREPARE[name]
    prepare(_features(200, protocol))()  # loads code, starts matrix libraries
    features = _features(num_images, protocol)
    work = prepare(features)
    start = time.perf_counter()
    recalls, peak_bytes = peak_above(work)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_bytes": peak_bytes, "recalls": recalls, "num_texts": len(features[1])}


def _features(num_images: int, protocol: str, seed: int = 0) -> Features:
    """What every contender gets; "one caption per image": the first of each; "pairs": an image row for each caption."""
    random = np.random.default_rng(seed)
    topics = random.standard_normal((max(2, num_images // 50), EMBED_DIM))
    images = topics[random.integers(len(topics), size=num_images)] + random.standard_normal((num_images, EMBED_DIM))
    counts = np.full(num_images, 5)
    for number, images_with in CAPTIONS_OF.items() if protocol == "all captions" else ():
        counts[random.choice(num_images, images_with * num_images // NUM_IMAGES, replace=False)] = number
    image_of_text = np.repeat(np.arange(num_images), counts)
    texts = images[image_of_text] + 5.5 * random.standard_normal((len(image_of_text), EMBED_DIM))
    apart = random.standard_normal((2, EMBED_DIM))
    images, texts = _unit(images + apart[0]), _unit(texts + 4 * apart[1])
    if protocol == "one caption per image":
        return images, texts[np.cumsum(counts) - counts], np.arange(num_images)
    if protocol == "pairs":
        return images[image_of_text], texts, np.arange(len(texts))
    return images, texts, image_of_text


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


Recalls = dict[str, list[float]]  # direction -> at 1, 5, 10; 0 to 1


def _ours(features: Features) -> Callable[[], Recalls]:
    from eval.metrics import FeatureSet, summarise
    from eval.ranks import retrieval_ranks

    def work() -> Recalls:
        summary = summarise(retrieval_ranks(FeatureSet(*features)), KS)
        return {direction: [figures[f"recall@{k}"] for k in KS] for direction, figures in summary.items()}

    return work


def _clip_benchmark(features: Features) -> Callable[[], Recalls]:
    """Its `evaluate` itself, with a model that gives the features back; batches of 64, its command's default."""
    import torch
    from clip_benchmark.metrics.zeroshot_retrieval import evaluate

    torch.set_num_threads(1)
    images, texts, image_of_text = (torch.from_numpy(x) for x in features)
    captions = texts.split(torch.bincount(image_of_text).tolist())
    batches = [(images[start : start + 64], captions[start : start + 64]) for start in range(0, len(images), 64)]

    class PassOn:
        encode_image = encode_text = staticmethod(lambda features: features)

    def work() -> Recalls:
        found = evaluate(PassOn, batches, torch.stack, "cpu", amp=False, recall_k_list=list(KS))
        names = {"image_to_text": "text_retrieval", "text_to_image": "image_retrieval"}
        return {direction: [found[f"{name}_recall@{k}"] for k in KS] for direction, name in names.items()}

    return work


def _open_clip(features: Features) -> Callable[[], Recalls]:
    import torch
    from open_clip_train.train import get_clip_metrics

    torch.set_num_threads(1)
    images, texts = torch.from_numpy(features[0]), torch.from_numpy(features[1])

    def work() -> Recalls:
        found = get_clip_metrics(images, texts, torch.tensor(100.0))
        return {way: [float(found[f"{way}_R@{k}"]) for k in KS] for way in ("image_to_text", "text_to_image")}

    return work


PREPARE: dict[str, Callable[[Features], Callable[[], Recalls]]] = {
    SHARDCLIP: _ours,
    CLIP_BENCHMARK: _clip_benchmark,
    OPEN_CLIP: _open_clip,
}


def _refusal() -> str:
    """What open_clip's metrics say to images with several captions."""
    return in_own_process("benchmarks.recall", "refusal", peers=True)["error"]


def _open_clip_error() -> dict[str, str]:
    try:
        _open_clip(_features(50, "all captions"))()
    except RuntimeError as error:
        return {"error": f"RuntimeError: {error}"}
    return {"error": "no error"}


def _difference(ours: Recalls, theirs: Recalls) -> float:
    return max(abs(a - b) for direction in ours for a, b in zip(ours[direction], theirs[direction], strict=True))


def _spoken(recalls: Recalls) -> str:
    ways = (f"{way.replace('_', ' ')} {' / '.join(f'{100 * r:.2f}' for r in row)}" for way, row in recalls.items())
    return "R@1/5/10, %: " + ", ".join(ways)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["measure", name, protocol, num_images]:
            print(json.dumps(_measure(name, protocol, int(num_images))))
        case ["refusal"]:
            print(json.dumps(_open_clip_error()))
        case arguments:
            main(arguments)
