"""A text tower again, from what a checkpoint says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core import parts
from core.config import Choice
from core.errors import WeightsError
from trainer.models.texts import TEXTS
from trainer.models.texts.text import LiveText

if TYPE_CHECKING:
    from trainer.models.texts.tower import TextTower

_SAYS_NOTHING = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")  # of the architecture


def rebuild_text(identity: Mapping[str, Any]) -> TextTower:
    """The tower that `TextTower.describe` spoke of, in eval mode, its weights still to be loaded from the checkpoint.

    Raises:
        WeightsError: the model's files are not on this machine, or not those of then; says how to get them.
    """
    text = parts.build(TEXTS, Choice(identity["kind"], identity["options"]), "text tower")
    assert isinstance(text, LiveText)
    where = f"the checkpoint's text tower '{identity['kind']}'"
    try:
        tower = text.build(identity["embed_dim"])
    except WeightsError as error:
        raise WeightsError(f"{where}: {error}") from error
    now = tower.describe()
    name = now["encoder"]["name"]
    if now["tokenizer"]["sha256"] != identity["tokenizer"]["sha256"]:
        raise WeightsError(
            f"{where} was trained with another tokenizer than {name} has here (sha256 "
            f"{identity['tokenizer']['sha256'][:12]}, here {now['tokenizer']['sha256'][:12]}). Put its files back."
        )
    then, here = (_architecture(config) for config in (identity["config"], now["config"]))
    if then != here:
        differing = sorted(key for key in {*then, *here} if then.get(key) != here.get(key))
        raise WeightsError(
            f"{where} has another architecture than {name} has here: {differing[0]} was {then.get(differing[0])}, "
            f"here it is {here.get(differing[0])}. Put its config.json back."
        )
    return tower.eval()


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _SAYS_NOTHING}
