"""Towers are known by name without loading a library, and the names are those that the libraries have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigError
from trainer.models import tower_names
from trainer.models.tower_names import expect_tower, torchvision_names

ROOT = Path(__file__).resolve().parents[3]


def test_torchvisions_names_are_those_that_it_lists() -> None:
    import torchvision

    listed = set(torchvision.models.list_models(module=torchvision.models)) - set(tower_names.NO_TOWERS)
    assert {name for name in listed if name.isidentifier()} - {"small"} == set(torchvision_names())


def test_every_model_of_timm_is_let_through() -> None:
    timm = pytest.importorskip("timm")
    for name in timm.list_models():
        expect_tower(f"timm:{name}")
    for name in timm.list_models(pretrained=True)[:50]:
        expect_tower(f"timm:{name}")


@pytest.mark.parametrize(
    ("tower", "sentence"),
    [
        ("resnet5", "torchvision has no image classifier 'resnet5'. Did you mean 'resnet50'"),
        ("vit_small", "no image classifier 'vit_small'. Known: vit_b_16, vit_b_32, vit_h_14, vit_l_16, vit_l_32."),
        ("googlenet", "torchvision has no image classifier 'googlenet'"),
        ("tim:resnet50", "the family of model.tower: unknown name 'tim'. Did you mean 'timm'?"),
        ("timm:mobilenetv9_huge", "timm has no model 'mobilenetv9_huge'"),
    ],
)
def test_names_that_nobody_has(tower: str, sentence: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError) as error:
        expect_tower(tower)
    assert sentence in str(error.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tower_names, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs timm, which is not installed: run `pip install 'shardclip\[timm\]'`"):
        expect_tower("timm:resnet50")


def test_asking_loads_nothing() -> None:
    program = "import sys; from trainer.models.tower_names import expect_tower; expect_tower('resnet50'); "
    program += "print(sorted({'torch', 'torchvision', 'timm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
