"""Random feature sets, and the ranks of one as they are defined: loops over all pairs and nothing clever."""

import numpy as np

from eval.metrics import FeatureSet


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


def slow_ranks(features):
    """The definition, one pair at a time: a wrong answer that scores at least as high stands before the right one."""
    similarity = features.images.astype(np.float64) @ features.texts.T.astype(np.float64)
    owner = features.image_of_text
    image_to_text, average_precision = [], []
    for i in range(len(features.images)):
        wrong = [similarity[i, t] for t in range(len(owner)) if owner[t] != i]
        right = sorted((similarity[i, t] for t in range(len(owner)) if owner[t] == i), reverse=True)
        ranks = [sum(w >= r for w in wrong) + nth for nth, r in enumerate(right, start=1)]
        image_to_text.append(ranks[0])
        hits = [nth / rank for nth, rank in enumerate(ranks, start=1) if rank <= 10]
        average_precision.append(sum(hits) / min(len(right), 10))
    text_to_image = []
    for t, own in enumerate(owner):
        text_to_image.append(
            1 + sum(similarity[j, t] >= similarity[own, t] for j in range(len(features.images)) if j != own)
        )
    return np.array(image_to_text), np.array(text_to_image), np.array(average_precision)
