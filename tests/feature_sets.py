"""Random feature sets, and the ranks of one as they are defined: loops over all pairs and nothing clever."""

from dataclasses import replace

import numpy as np

from eval.metrics import FeatureSet, RightAnswers


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_features(seed, captions_per_image, embed_dim=16, quantised=False, shuffle=True):
    """A set whose captions resemble their image; quantised features (signs over a square) tie often, and exactly."""
    rng = np.random.default_rng(seed)
    image_of_text = np.repeat(np.arange(len(captions_per_image)), captions_per_image)
    if shuffle:
        rng.shuffle(image_of_text)
    images = rng.standard_normal((len(captions_per_image), embed_dim))
    texts = images[image_of_text] + 1.5 * rng.standard_normal((len(image_of_text), embed_dim))
    if quantised:
        assert embed_dim in (4, 16), "1/sqrt(D) must be exact in binary"
        images, texts = np.sign(images), np.sign(texts)
    return FeatureSet(unit(images), unit(texts), image_of_text)


def with_right_answers(features, seed, statements):
    """The set with texts that say the same, and images of which several things hold: right for further images."""
    rng = np.random.default_rng(seed)
    says = rng.integers(statements, size=len(features.texts)) * 3  # numbers need not be dense
    held = {*zip(features.image_of_text.tolist(), says.tolist(), strict=True)}
    held |= {(int(rng.integers(len(features.images))), int(rng.integers(statements)) * 3) for _ in range(statements)}
    images, holds = np.array(sorted(held, key=lambda pair: rng.random())).T
    return replace(features, more_right=RightAnswers("drawn", says, images, holds))


def slow_ranks(features):
    """The definition, one pair at a time: a wrong answer that scores at least as high stands before the right one."""
    similarity = features.images.astype(np.float64) @ features.texts.T.astype(np.float64)
    right = features.right
    held = [set(right.holds[right.images == i].tolist()) for i in range(len(features.images))]
    is_right = np.array([[says in of_image for says in right.says.tolist()] for of_image in held])
    of_images = [_slow_rank(scores, own) for scores, own in zip(similarity, is_right, strict=True)]
    of_texts = [_slow_rank(scores, own) for scores, own in zip(similarity.T, is_right.T, strict=True)]
    (image_to_text, precision), (text_to_image, text_precision) = zip(*of_images), zip(*of_texts)
    return tuple(map(np.array, (image_to_text, text_to_image, precision, text_precision)))


def _slow_rank(scores, is_right):
    """The rank of a query's best right answer, and AP@10."""
    wrong, right = scores[~is_right], sorted(scores[is_right], reverse=True)
    ranks = [sum(w >= r for w in wrong) + nth for nth, r in enumerate(right, start=1)]
    hits = [nth / rank for nth, rank in enumerate(ranks, start=1) if rank <= 10]
    return ranks[0], sum(hits) / min(len(right), 10)
