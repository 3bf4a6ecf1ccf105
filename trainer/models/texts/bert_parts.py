"""BERT, DistilBERT and RoBERTa taken apart for training: their blocks, and the mean of their tokens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from core.text_encoders.pretrained import load_trainable
from core.text_encoders.sentence import PROBES, MeanPooled
from trainer.models.texts.text import TextParts

if TYPE_CHECKING:
    from torch import Tensor


def bert_parts(encoder: MeanPooled) -> TextParts:
    """The trainable model of the frozen encoder's files.

    Raises:
        WeightsError: with filler beside it a caption gives something else than alone: no BERT-like model.
    """
    model = load_trainable(encoder.pretrained, "AutoModel")
    modules = dict(model.named_modules())
    blocks = modules.get("encoder.layer") or modules.get("transformer.layer")  # DistilBERT's word
    if blocks is None:
        raise encoder.unlike("it has no encoder.layer")
    pool = partial(mean_of_tokens, first_position=encoder.first_position)
    _prove(encoder, model, pool)
    config = encoder.pretrained.settings()
    return TextParts(model, pool, encoder.spec.embed_dim, blocks=tuple(blocks), config=config)


def mean_of_tokens(model: Any, tokens: Tensor, is_token: Tensor, *, first_position: int) -> Tensor:
    """`(b, W)`: the mean of the last layer's states, over each caption's own tokens."""
    import torch

    positions = torch.arange(tokens.shape[1], device=tokens.device) + first_position
    # A mask of four dimensions is taken as it is; of two, transformers asks the device whether it masks anything.
    mask = is_token[:, None, None, :]
    states = model(input_ids=tokens, attention_mask=mask, position_ids=positions[None]).last_hidden_state
    weights = is_token / is_token.sum(dim=1, keepdim=True)  # (b, L)
    return (states.float() * weights[:, :, None]).sum(dim=1)


def _prove(encoder: MeanPooled, model: Any, pool: Any) -> None:
    """Raise where padded captions give something else than each gave alone, as relative positions would."""
    import torch

    ids = encoder.tokenize(PROBES)
    width = max(map(len, ids)) + 1
    tokens = torch.tensor([own + [0] * (width - len(own)) for own in ids])
    is_token = torch.arange(width) < torch.tensor([[len(own)] for own in ids])
    try:
        with torch.inference_mode():
            alone = [model(torch.tensor([own])).last_hidden_state[0].mean(dim=0) for own in ids]
            worst = torch.cosine_similarity(torch.stack(alone), pool(model, tokens, is_token)).min().item()
    except (TypeError, ValueError, RuntimeError) as error:
        raise encoder.unlike(" ".join(str(error).split())[:200]) from error
    if not worst > 0.999:
        raise encoder.unlike(f"cosine {worst:.3f}")
