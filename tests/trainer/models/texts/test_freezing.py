"""What trains is what the recipe says: bit by bit, and every trainable parameter has a gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gloo
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from core.errors import ConfigError
from trainer.models.texts.hf_clip import HFClipText
from trainer.models.texts.sentence import SentenceText
from trainer.models.texts.text import LiveText
from trainer.models.texts.tower import TextTower

TOWERS = ["tiny_bert", "tiny_distilbert", "tiny_roberta", "tiny_clip"]
BLOCKS = {  # name of the model -> where its blocks are, how many
    "tiny_bert": ("tower.encoder.layer", 3),
    "tiny_distilbert": ("tower.transformer.layer", 2),
    "tiny_roberta": ("tower.encoder.layer", 2),
    "tiny_clip": ("tower.text_model.encoder.layers", 2),
}
AFTER = {"tiny_clip": ("tower.text_model.final_layer_norm", "tower.text_projection")}
Make = Callable[[str, str], TextTower]


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Make:
    """A tower by the name of its model and what of it trains."""

    def of(name: str, train: str) -> TextTower:
        part = HFClipText if name == "tiny_clip" else SentenceText
        text = part(tokens="tokens", model=str(request.getfixturevalue(name)), train=train, hidden_dim=20, dropout=0.1)
        torch.manual_seed(0)
        return text.build(16)

    return of


def should_move(name: str, train: str, parameter: str) -> bool:
    where, count = BLOCKS[name]
    if train == "all" or parameter.startswith("head."):
        return True
    if train == "head":
        return False
    blocks = range(count)[-int(train) :]
    return parameter.startswith((*(f"{where}.{block}." for block in blocks), *AFTER.get(name, ())))


@pytest.mark.parametrize("train", ["all", "head", "1", "2"])
@pytest.mark.parametrize("name", TOWERS)
def test_a_step_moves_exactly_what_trains(make: Make, name: str, train: str) -> None:
    tower = make(name, train)
    before = {n: p.detach().clone() for n, p in tower.named_parameters()}
    groups = tower.parameter_groups()
    assert list(groups) == ["text_tower", "text_head"]
    optimizer = torch.optim.AdamW([*groups["text_tower"], *groups["text_head"]], lr=0.01, weight_decay=0.1, eps=1e-30)
    loss = (tower(captions_like_tokens()) * torch.randn(6, 16, generator=torch.Generator().manual_seed(1))).sum()
    loss.backward()
    without = [n for n, p in tower.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "DistributedDataParallel would stop: these take no part in the output"
    optimizer.step()
    for parameter, value in tower.named_parameters():
        moved = not torch.equal(value, before[parameter])
        assert moved == should_move(name, train, parameter), parameter


def test_distributed_ranks_agree_step_after_step(tiny_clip: Path, tiny_bert: Path) -> None:
    texts = [
        part(tokens="tokens", model=str(folder), train=train)
        for part, folder in ((HFClipText, tiny_clip), (SentenceText, tiny_bert))
        for train in ("all", "head", "1")
    ]
    a, b = gloo.run(2, parameters_after_steps, texts)
    assert a == b and len(set(map(tuple, a))) == len(texts)


def parameters_after_steps(texts: list[LiveText]) -> list[list[float]]:
    """Of each tower the sums of this rank's parameters after three steps; DDP raises at one that takes no part."""
    found = []
    for text in texts:
        torch.manual_seed(0)
        tower = text.build(8)
        wrapped = DistributedDataParallel(tower)
        optimizer = torch.optim.SGD([p for group in tower.parameter_groups().values() for p in group], lr=0.1)
        torch.manual_seed(torch.distributed.get_rank() + 1)  # tokens of its own
        for _ in range(3):
            optimizer.zero_grad()
            (wrapped(torch.randint(5, 40, (4, 9))) * torch.linspace(-1, 1, 8)).sum().backward()
            optimizer.step()
        found.append([parameter.detach().double().sum().item() for parameter in tower.parameters()])
    return found


@pytest.mark.parametrize("name", TOWERS)
def test_what_is_frozen_keeps_no_graph_and_stays_in_eval_mode(make: Make, name: str) -> None:
    tower = make(name, "head").train()
    assert not any(module.training for module in tower.tower.modules())
    assert all(module.training for module in tower.head.modules())
    seen: list[torch.Tensor] = []
    tower.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    tower(captions_like_tokens())
    assert not seen[0].requires_grad
    partly = make(name, "1").train()
    where, count = BLOCKS[name]
    blocks = [partly.get_submodule(f"{where}.{number}") for number in range(count)]
    assert [block.training for block in blocks] == [False] * (count - 1) + [True]
    assert all(module.training for module in blocks[-1].modules())
    assert not any(m.training for m in partly.modules() if isinstance(m, torch.nn.Embedding))
    assert not any(module.training for module in partly.eval().modules())


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_distilbert"])
def test_frozen_dropout_is_off_and_trained_dropout_is_on(make: Make, name: str) -> None:
    def features(train: str) -> list[torch.Tensor]:
        tower = make(name, train).train()
        pooled: list[torch.Tensor] = []
        tower.head.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0].detach()))
        for _ in range(2):
            tower(captions_like_tokens())
        return pooled

    assert torch.equal(*features("head")) and not torch.equal(*features("1"))


def test_more_blocks_than_there_are_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError) as error:
        make("tiny_bert", "4")
    assert str(error.value) == "text tower: train is 4, but it has 3 blocks. Give all, or fewer."


def test_the_pooler_is_gone(make: Make, tiny_bert: Path) -> None:
    assert "pooler" in (tiny_bert / "model.safetensors").read_bytes()[:8000].decode("latin-1")
    assert not any("pooler" in name for name in make("tiny_bert", "all").state_dict())


def captions_like_tokens() -> torch.Tensor:
    tokens = torch.randint(5, 40, (6, 9), generator=torch.Generator().manual_seed(0))
    tokens[0, 4:] = tokens[3, 7:] = -1
    return tokens
