"""Topics: k-means over the captions' embeddings, so that a batch can be drawn from one topic."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from core.column_kind import ColumnPlan, ColumnWork, by_shard
from core.column_values import CENTROIDS, Column, centroids_sha256
from core.columns import TOPICS, ColumnValues
from core.errors import ConfigError, DataError, ManifestError
from core.shard_set import ShardSet

NEAREST = 3  # captions that show what a topic is
_ROWS = 4096  # of a matrix product: one shape, so that a row's bits do not depend on how many there are
_NUM_TOPICS = 100


@dataclass(frozen=True)
class Fitted:
    """What k-means found."""

    centroids: np.ndarray  # (K, E) float32
    iterations: int


def topic_column(
    work: ColumnWork,
    name: str = "",
    num_topics: int | None = None,
    text: str = "",
    seed: int = 0,
    max_iterations: int = 100,
    like: str = "",
) -> ColumnPlan:
    """One topic number per sample, `<i4`, with `centroids` `(num_topics, E)` beside them.

    Args:
        name: of the column; default `topics`.
        num_topics: default 100; with `like` it is the other set's.
        text: the text column to go by; "": the stored embeddings, or the only text column of a set without.
        like: another set: its column of this name gives the centroids, so that both sets share topics.

    Raises:
        ConfigError: scikit-learn is not installed, or the numbers do not fit the set.
        ManifestError: a set lacks embeddings or topics, or they are of different encoders.
    """
    name = name or TOPICS
    source = ShardSet.open(work.url, work.cache_dir, text=text) if text else work.shard_set
    encoder = source.expect_text("Name one of them: text=...")
    if like and num_topics is not None:
        raise ConfigError(f"column 'topics': like={like} brings its own number of topics. Leave num_topics out.")
    num_topics = _NUM_TOPICS if num_topics is None else num_topics
    if max_iterations < 1 or not 0 <= seed < 2**32:
        raise ConfigError(
            f"column 'topics': max_iterations is {max_iterations} and seed {seed}: at least 1, and from 0 to 2^32 - 1, "
            "are needed."
        )
    origin: dict[str, Any] = {
        "text": {"column": source.text or None, "text_encoder": asdict(encoder)},
        "num_topics": num_topics,
        "seed": seed,
        "max_iterations": max_iterations,
        "scikit_learn": None,
        "like": None,
    }
    centroids: np.ndarray | None = None
    if like:
        other = ShardSet.open(like, work.cache_dir).column(name)
        _expect_comparable(work.url, like, origin, other)
        centroids = np.array(other.extra(CENTROIDS))
        kept = {key: other.head.origin[key] for key in ("num_topics", "seed", "max_iterations", "scikit_learn")}
        told = {"fingerprint": other.head.fingerprint, "centroids_sha256": centroids_sha256(other.head)}
        origin |= {**kept, "like": told}
    else:
        if not 2 <= num_topics <= len(source):
            raise ConfigError(
                f"column 'topics': num_topics is {num_topics}; {work.url} has {len(source):,} samples: 2 to that many."
            )
        origin["scikit_learn"] = _scikit_learn_version()

    def make() -> ColumnValues:
        vectors = sample_vectors(work, source)
        fitted = Fitted(centroids, 0) if centroids is not None else fit(vectors, num_topics, seed, max_iterations)
        numbers, distances = nearest(vectors, fitted.centroids)
        figures = figures_of(source, numbers, distances, fitted)
        return ColumnValues(by_shard(source, numbers), {CENTROIDS: fitted.centroids}, figures)

    return ColumnPlan(name, TOPICS, "sample", "<i4", (), origin, make)


def sample_vectors(work: ColumnWork, source: ShardSet) -> np.ndarray:
    """`(N, E)` float32, unit length: the mean of each sample's caption embeddings."""
    vectors = np.empty((len(source), source.embed_dim), np.float32)
    with work.progress("samples", len(source)) as show:
        for sample in range(len(source)):
            mean = source.embeddings(sample).astype(np.float32).mean(axis=0)
            length = np.linalg.norm(mean)
            if not length > 0:
                raise DataError(f"{source.describe(sample)}: its caption embeddings cancel out or are not finite.")
            vectors[sample] = mean / length
            show(sample + 1)
    return vectors


def fit(vectors: np.ndarray, num_topics: int, seed: int, max_iterations: int) -> Fitted:
    """Lloyd's k-means from k-means++ seeds, by one thread: bytes depend on nothing else."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    model = KMeans(num_topics, n_init=1, random_state=seed, max_iter=max_iterations, algorithm="lloyd")
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than topics: the figures say so
        model.fit(vectors)
    return Fitted(model.cluster_centers_.astype("<f4"), int(model.n_iter_))


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of the nearest centroid `(N,)` int32, and the squared distance to it `(N,)` float32.

    Of equally near ones the first.
    """
    from threadpoolctl import threadpool_limits

    numbers, distances = np.empty(len(vectors), "<i4"), np.empty(len(vectors), np.float32)
    lengths = (centroids**2).sum(axis=1)
    with threadpool_limits(1):
        for start in range(0, len(vectors), _ROWS):
            block = np.zeros((_ROWS, vectors.shape[1]), np.float32)
            rows = vectors[start : start + _ROWS]
            block[: len(rows)] = rows
            squared = ((block**2).sum(axis=1)[:, None] - 2 * block @ centroids.T + lengths)[: len(rows)]
            best = squared.argmin(axis=1)
            numbers[start : start + _ROWS] = best
            distances[start : start + _ROWS] = squared[np.arange(len(rows)), best].clip(min=0)
    return numbers, distances


def figures_of(source: ShardSet, numbers: np.ndarray, distances: np.ndarray, fitted: Fitted) -> dict[str, Any]:
    """What the topics are, for people: of each its size and the captions nearest to its middle."""
    sizes = np.bincount(numbers, minlength=len(fitted.centroids))
    order = np.lexsort((distances, numbers))  # by topic, then by distance, then by sample
    starts = np.cumsum(sizes) - sizes
    topics = []
    for start, size in zip(starts.tolist(), sizes.tolist()):
        closest = (source.captions(sample)[0] for sample in order[start : start + size].tolist())
        topics.append({"size": size, "captions": list(islice(_distinct(closest), NEAREST))})
    return {
        "inertia": float(distances.astype(np.float64).sum()),
        "iterations": fitted.iterations,
        "empty_topics": int((sizes == 0).sum()),
        "topics": topics,
    }


def _distinct(captions: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for caption in captions:
        if caption not in seen:
            seen.add(caption)
            yield caption


def _expect_comparable(url: str, like: str, origin: Mapping[str, Any], other: Column) -> None:
    if other.head.kind != TOPICS:
        raise ManifestError(
            f"{like}: its column '{other.head.name}' is {other.head.kind}, no topics. Name it by name=."
        )
    ours, theirs = origin["text"]["text_encoder"], other.head.origin["text"]["text_encoder"]
    if ours != theirs:
        raise ManifestError(
            f"{like}: its topics are of embeddings by {theirs['name']}, those of {url} are by {ours['name']}. "
            "Name a text column of that encoder: text=."
        )


def _scikit_learn_version() -> str:
    try:
        import sklearn
        import threadpoolctl  # noqa: F401  (is looked for before the work, not in it)
    except ImportError:
        raise ConfigError("column 'topics' needs scikit-learn: `pip install 'shardclip[viz]'`.") from None
    return str(sklearn.__version__)
