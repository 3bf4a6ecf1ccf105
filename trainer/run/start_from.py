"""`start_from`: a run that begins with weights of another one, under a schedule, optimizer and steps of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.config import Choice, convert
from core.distributed import on_main
from core.errors import ConfigError
from core.manifest import TextEncoderSpec
from trainer.checkpoint.folder import load_latest, resolve_checkpoint
from trainer.checkpoint.weights import read_weights
from trainer.config import TrainConfig
from trainer.models.config import SUFFIXES
from trainer.models.towers.weights import read_state_dict
from trainer.models.trained import TrainedModel
from trainer.pictures.normalization import Normalization
from trainer.run.exported import read_facts
from trainer.run.folder import CHECKPOINTS

TOWER, HEAD, TEXT = "image_encoder.tower.", "image_encoder.head.", "text_encoder."
_PARTS = {"all": (TOWER, HEAD, TEXT), "tower": (TOWER,), "head": (HEAD,)}


@dataclass(frozen=True)
class Source:
    """Weights that may go into a model.

    Attributes:
        encoder: tensors as `Encoder.state_dict` names them.
        learned: scalars of the objective `objective`.
        normalization: of the pictures that they were trained on; None where nobody knows.
        tower: its name; None where nobody knows.
        text_encoder: the frozen encoder whose embeddings its head learned to meet; None: none, or nobody knows.
        is_own: they are the run's own, which goes on from them: what does not fit is found when it is put back.
    """

    path: Path
    encoder: Mapping[str, Tensor]
    learned: Mapping[str, Tensor]
    objective: str | None = None
    normalization: Normalization | None = None
    tower: str | None = None
    text_encoder: TextEncoderSpec | None = None
    is_own: bool = False


@dataclass(frozen=True)
class Start:
    """What a run took over at its first start.

    Attributes:
        taken: number of tensors by part.
        left: why something was not taken, by part or scalar.
    """

    path: Path
    taken: Mapping[str, int]
    left: Mapping[str, str]

    def __str__(self) -> str:
        """One line for people."""
        taken = ", ".join(f"{part} {count}" for part, count in self.taken.items())
        left = "; ".join(f"{name} ({why})" for name, why in self.left.items()) or "nothing"
        return f"starts from {self.path}: {sum(self.taken.values())} tensors taken ({taken}); left: {left}"

    def account(self) -> dict[str, Any]:
        """The same for the journal."""
        return {"path": str(self.path), "parts": dict(self.taken), "left": dict(self.left)}


def read_source(config: TrainConfig, at_first_start: bool = False) -> Source | None:
    """The weights that the run begins with: of `start_from` at its first start, its own later on; None without the key.

    Args:
        at_first_start: those of `start_from`, though the run has weights of its own by now.

    Raises:
        CheckpointError, WeightsError: nothing is there, or it is damaged.
        ConfigError: a file of weights, and nothing says how its pictures were normalised.
    """
    if config.start_from is None:
        return None
    if not at_first_start and (own := on_main(lambda: _own_checkpoint(config))):
        return _of_checkpoint(own, config, is_own=True)
    path = Path(config.start_from)
    if not path.is_file() and not (path.suffix in SUFFIXES and not path.exists()):
        return _of_checkpoint(resolve_checkpoint(path), config)
    state = read_state_dict(path, "start_from")
    if (facts := read_facts(path)) is not None:
        learned = {name: torch.tensor(value) for name, value in facts.parameters.items()}
        return _of_identity(path, state, learned, facts.identity, facts.objective, config)
    is_encoder = any(name.startswith((TOWER, HEAD)) for name in state)
    if config.start_parts != "head" and config.model.normalize == "auto":
        raise ConfigError(
            f"start_from is the file {path}, which does not say how its pictures were normalised: set model.normalize "
            "to imagenet (torchvision's own weights), clip or half."
        )
    return Source(path, state if is_encoder else {TOWER + name: tensor for name, tensor in state.items()}, {})


@torch.no_grad()
def fill(
    model: TrainedModel, source: Source, config: TrainConfig, text_encoder: TextEncoderSpec | None = None
) -> Start | None:
    """Put the weights into a model; None for a run's own, of which only what fits is taken.

    Args:
        text_encoder: whose stored embeddings the run's head will meet; None where there are none.

    Raises:
        ConfigError: a tensor is missing, too many, or of another shape; names it. Or the head belongs beside the
            embeddings of another text encoder.
    """
    mine = model.encoder.state_dict()
    if source.is_own:
        fitting = {name: x for name, x in source.encoder.items() if name in mine and mine[name].shape == x.shape}
        model.encoder.load_state_dict(fitting, strict=False)
        return None
    left = {_name(part): f"start_parts={config.start_parts}" for part in _PARTS["all"] if _of(part, source.encoder)}
    chosen, taken = {}, {}
    for part in _PARTS[config.start_parts]:
        why = _why_left(part, source, mine, config)
        if why is None:
            if part == HEAD:
                _expect_same_space(source, text_encoder)
            found = _fitting(part, source, model, config)
            chosen.update(found)
            taken[_name(part)] = len(found)
            left.pop(_name(part), None)
        elif why:
            left[_name(part)] = why
    outside = [name for name in source.encoder if not name.startswith(_PARTS["all"])]
    left |= dict.fromkeys(outside, "no part of an encoder")
    model.encoder.load_state_dict(chosen, strict=False)
    for name, why in _fill_learned(model, source, config).items():
        if why is None:
            taken[name] = 1
        else:
            left[name] = why
    return Start(source.path, taken, left)


def _own_checkpoint(config: TrainConfig) -> Path | None:
    """Of the run that `resume` goes on with, or None at its first start."""
    if config.resume not in ("auto", "no"):
        return resolve_checkpoint(Path(config.resume))
    found = load_latest(config.run_dir / CHECKPOINTS)
    return found.path if found else None


def _of_checkpoint(path: Path, config: TrainConfig, is_own: bool = False) -> Source:
    weights = read_weights(path)
    objective = convert(weights.identity["config"].get("objective", "infonce"), Choice, f"{path}: objective").name
    return _of_identity(path, weights.encoder, weights.learned, weights.identity, objective, config, is_own)


def _of_identity(
    path: Path,
    encoder: Mapping[str, Tensor],
    learned: Mapping[str, Tensor],
    identity: Mapping[str, Any],
    objective: str,
    config: TrainConfig,
    is_own: bool = False,
) -> Source:
    model: Mapping[str, Any] = identity["model"]
    has_tower = is_own or config.start_parts != "head"
    normalization = Normalization(tuple(model["mean"]), tuple(model["std"])) if has_tower else None
    spec = identity.get("text_encoder")
    return Source(
        path, encoder, learned, objective, normalization, model["tower"],
        TextEncoderSpec(**spec) if spec else None, is_own,
    )  # fmt: skip


def _why_left(part: str, source: Source, mine: Mapping[str, Tensor], config: TrainConfig) -> str | None:
    """Why the weights or the run do without a part; empty where both do, None where it is to be taken."""
    theirs, ours = _of(part, source.encoder), _of(part, mine)
    if theirs and ours:
        return None
    if part == TEXT:
        return "this run trains no text tower" if theirs else "not there: this run's begins anew" if ours else ""
    if part == HEAD and config.start_parts == "all" and source.tower is None:
        return "not there: this run's begins anew"
    other = "head" if part == TOWER else "tower"
    raise ConfigError(f"start_from: {source.path} has no {_name(part)}. Take what it has: start_parts={other}.")


def _expect_same_space(source: Source, text_encoder: TextEncoderSpec | None) -> None:
    """Raise where a head would come beside other embeddings than those it learned to meet: it may fit, and be wrong."""
    theirs = source.text_encoder
    if theirs is None or text_encoder is None or theirs.weights_sha256 == text_encoder.weights_sha256:
        return
    raise ConfigError(
        f"start_from: {source.path} has a head for captions embedded by {theirs}; those of this set are embedded by "
        f"{text_encoder}. Take the tower alone, with a head of its own: start_parts=tower."
    )


def _fitting(part: str, source: Source, model: TrainedModel, config: TrainConfig) -> dict[str, Tensor]:
    """The part's tensors, every one of which the model has in the same shape."""
    where, remedy = f"start_from: {source.path}", _remedy(part, config)
    if part == TOWER and source.tower not in (None, config.model.tower):
        raise ConfigError(
            f"{where} has the tower {source.tower}, the recipe {config.model.tower}. Set model.tower={source.tower}."
        )
    theirs, ours = _of(part, source.encoder), _of(part, model.encoder.state_dict())
    if part == TOWER:  # the classifier's own last layer is not there where towers are built
        theirs = {name: x for name, x in theirs.items() if not _is_taken_off(name, model)}
    for name in [*ours, *theirs]:
        if name not in theirs:
            raise ConfigError(f"{where} has no {name}. {remedy}")
        if name not in ours:
            raise ConfigError(f"{where} has {name}, which this recipe's model has not. {remedy}")
        if theirs[name].shape != ours[name].shape:
            shapes = f"{tuple(theirs[name].shape)}, this recipe's is {tuple(ours[name].shape)}"
            raise ConfigError(f"{where}: {name} is {shapes}. {remedy}")
    return theirs


def _remedy(part: str, config: TrainConfig) -> str:
    if part == TOWER:
        return "Set model.tower and image_size as it was trained."
    compares_stored = config.build_objective().needs_text and config.build_text() is None
    of_head = "model.hidden_dim" if compares_stored else "model.hidden_dim and model.embed_dim"
    setting = of_head if part == HEAD else "model.text"
    return f"Set {setting} as it was trained, or take the tower alone: start_parts=tower."


def _fill_learned(model: TrainedModel, source: Source, config: TrainConfig) -> dict[str, str | None]:
    """Each learned scalar of either side, and why it was left; None where it was taken."""
    outcome: dict[str, str | None] = {}
    for name in {**source.learned, **dict(model.learned.items())}:
        if config.start_parts != "all":
            why: str | None = f"start_parts={config.start_parts}"
        elif name not in source.learned:
            why = "not there: this run's begins anew"
        elif source.objective != config.objective.name:
            why = f"of the objective {source.objective}, this run's is {config.objective.name}"
        elif name not in model.learned:
            why = f"this run's {config.objective.name} learns none"
        else:
            why = None
            model.learned[name].copy_(source.learned[name])
        outcome[name] = why
    model.clamp()  # the recipe's bounds may be narrower
    return outcome


def _is_taken_off(name: str, model: TrainedModel) -> bool:
    """Whether a tensor belongs to the layer in whose place a tower has nothing."""
    try:
        return isinstance(model.encoder.get_submodule(name.rpartition(".")[0]), nn.Identity)
    except AttributeError:
        return False


def _of(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(part)}


def _name(part: str) -> str:
    """`tower`, `head`, `text_encoder`."""
    return part.rstrip(".").rpartition(".")[2]
