"""Each objective as its paper writes it, pair by pair: loops over the whole batch and nothing clever.

Written from the papers, not from the product. Every function takes features `(N, D)`, scalars and columns by name, all
of one process, and the objective's options; it returns the loss, through which autograd goes. N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = Mapping[str, Tensor]


def infonce(
    features: Tensors,
    scalars: Tensors,
    given: Tensors,
    label_smoothing: float = 0.0,
    positives: str = "mask",
    max_caption_similarity: float | None = None,
    captions: str = "drawn",
    **other: Any,
) -> Tensor:
    """CLIP (Radford et al. 2021, fig. 3): the mean of two cross-entropies, images among captions and the other way.

    With all captions, an image's own ones share its target, and the second mean is over captions. Other samples of the
    same image, and samples with a caption close to one of the row's, are no negatives.
    """
    images, ids, scale = features["image"], given["image_id"].tolist(), scalars["scale"]
    texts = features["text"] if captions == "all" else features["text"][:, None]  # (N, C, D)
    counts = given["num_captions"].tolist() if captions == "all" else [1] * len(images)
    everyone = [(j, c) for j in range(len(images)) for c in range(counts[j])]

    def is_positive(i: int, j: int) -> bool:
        return i == j or (positives == "multi" and ids[i] == ids[j])

    def is_close(i: int, j: int) -> bool:
        if max_caption_similarity is None:
            return False
        pairs = [(texts[i, a], texts[j, b]) for a in range(counts[i]) for b in range(counts[j])]
        return max(float(one.detach() @ other.detach()) for one, other in pairs) > max_caption_similarity

    def is_candidate(i: int, j: int) -> bool:
        return is_positive(i, j) or not (ids[i] == ids[j] or is_close(i, j))

    candidates = {(i, j) for i in range(len(images)) for j in range(len(images)) if is_candidate(i, j)}
    of_images, of_captions = [], []
    for i in range(len(images)):
        among = [(j, c) for j, c in everyone if (i, j) in candidates]
        logits = [scale * (images[i] @ texts[j, c]) for j, c in among]
        of_images.append(_cross_entropy(logits, [is_positive(i, j) for j, _ in among], label_smoothing))
    for i, c in everyone:
        among_images = [j for j in range(len(images)) if (i, j) in candidates]
        logits = [scale * (texts[i, c] @ images[j]) for j in among_images]
        of_captions.append(_cross_entropy(logits, [is_positive(i, j) for j in among_images], label_smoothing))
    return (_mean(of_images) + _mean(of_captions)) / 2


def siglip(features: Tensors, scalars: Tensors, given: Tensors, positives: str = "mask", **other: Any) -> Tensor:
    """SigLIP (Zhai et al. 2023, eq. 1): -1/N of the sum over all pairs of log sigmoid(z_ij (t x_i . y_j + b))."""
    images, texts, ids = features["image"], features["text"], given["image_id"].tolist()
    total = torch.zeros((), dtype=images.dtype)
    for i in range(len(images)):
        for j in range(len(texts)):
            if i != j and ids[i] == ids[j] and positives == "mask":
                continue
            z = 1 if ids[i] == ids[j] or i == j else -1
            total = total + F.logsigmoid(z * (scalars["scale"] * (images[i] @ texts[j]) + scalars["bias"]))
    return -total / len(images)


def nt_xent(features: Tensors, scalars: Tensors, given: Tensors, temperature: float = 0.1, **other: Any) -> Tensor:
    """SimCLR (Chen et al. 2020, eq. 1): the mean over all 2N views, each of which looks for its sample's other view.

    Other samples of the same image are not among the views that it is told from.
    """
    views, samples = _all_views(features)
    ids = given["image_id"].tolist()
    losses = []
    for i, of_i in enumerate(samples):
        among = [k for k, of_k in enumerate(samples) if k != i and (of_k == of_i or ids[of_k] != ids[of_i])]
        other_view = [samples[k] == of_i for k in among]
        losses.append(_cross_entropy([views[i] @ views[k] / temperature for k in among], other_view))
    return _mean(losses)


def supcon(features: Tensors, scalars: Tensors, given: Tensors, temperature: float = 0.1, **other: Any) -> Tensor:
    """SupCon (Khosla et al. 2020, eq. 2): per anchor, the mean of -log softmax over its positives.

    A label of -1 is none. The mean is over the anchors that have a positive.
    """
    views, samples = _all_views(features)
    labels = given["label"].tolist()
    losses = []
    for i, of_i in enumerate(samples):
        others = [k for k in range(len(views)) if k != i]
        positive = [samples[k] == of_i or (labels[samples[k]] == labels[of_i] and labels[of_i] != -1) for k in others]
        if any(positive):
            losses.append(_cross_entropy([views[i] @ views[k] / temperature for k in others], positive))
    return _mean(losses)


ORACLES: dict[str, Callable[..., Tensor]] = {
    "InfoNCE": infonce,
    "NTXent": nt_xent,
    "SigLIP": siglip,
    "SupCon": supcon,
}


def oracle_loss(objective: Any, features: Tensors, scalars: Tensors, given: Tensors) -> Tensor:
    """What `objective`, with its options, has to give."""
    return ORACLES[type(objective).__name__](features, scalars, given, **vars(objective))


def _all_views(features: Tensors) -> tuple[list[Tensor], list[int]]:
    """Every view of every sample, and the sample of each."""
    names = [name for name in ("image", "image2") if name in features]
    views = [(x, sample) for name in names for sample, x in enumerate(features[name])]
    return [x for x, _ in views], [sample for _, sample in views]


def _cross_entropy(logits: list[Tensor], is_positive: list[bool], label_smoothing: float = 0.0) -> Tensor:
    """-sum q log p: the positives share the target equally, but for a part that all share."""
    everyone = torch.stack(logits).exp().sum()
    loss = torch.zeros_like(everyone)
    for logit, positive in zip(logits, is_positive):
        share = (1 - label_smoothing) * positive / sum(is_positive) + label_smoothing / len(logits)
        loss = loss - share * torch.log(logit.exp() / everyone)
    return loss


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean()
