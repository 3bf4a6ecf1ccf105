"""What the doctor passes starts, and what it refuses does not: the same broken recipes to both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from broken_inputs import words_of, workspace

from core.config import load_config
from core.errors import ConfigError, ShardclipError
from launch.doctor import CHECKS, Examined, findings_of
from launch.early import expect_startable, mistakes
from trainer.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
UNCHANGED = "augment.crop_scale=1,1 augment.flip=0"
BROKEN = [
    "optim.warmup_steps=500",
    "optim.warmup_steps=3",
    "max_steps=1",
    "global_batch_size=64",
    "accumulate=3",
    "data.train={folder}/nowhere",
    "data.train={lost}",
    "data.train={cut}",
    "data.train={raw}",
    "data.train={torn}",
    "data.train={train},{wide}",
    "data.val={folder}/nowhere",
    "data.val={wide}",
    "data.text=nothing",
    "data.columns={{label:_none}}",
    f"data.image_features=nothing {UNCHANGED}",
    "data.sampler={{name:_mix,weights:_[1,2]}}",
    "data.sampler={{name:_class_balanced,column:_none,num_classes:_2,num_per_class:_4}}",
    "data.cache_dir={home}",
    "model.tower=resnet19",
    "model.tower=timm:nonsense_of_a_model",
    "model.tower=timm:resnet18.a1_in1k",
    "model.tower=vit_b_32 image_size=40",
    "model.tower=vit_b_32 image_size=16",
    "model.tower=alexnet image_size=32",
    "model.tower=vgg11 image_size=16",
    "model.weights=IMAGENET1K_V9",
    "model.weights={folder}/none.pth model.normalize=clip",
    "model.weights={jpg} model.normalize=clip",
    "model.freeze=layer9",
    "model.text={{name:_minilm,tokens:_tokens.none}}",
    "optim.part_lr={{towr:_1}}",
    "precision=fp16",
    "best_by=val/los",
    "best_by=val/knn/accuracy",
    "objective=nt_xent",
    "objective=supcon data.columns={{label:_none}}",
    "resume={folder}/run/checkpoints/step-00000007",
    "resume=no run_dir={run}",
    "start_from={folder}/nowhere",
    "start_from={train}",
    "start_from={folder}/none.pth model.normalize=clip",
    "start_from={jpg} model.normalize=clip",
    "run_dir={photos}",
    "run_dir={jpg}",
    "tracking.wandb=online",
]
SOUND = [
    "epochs=2",
    "image_size=64",
    "accumulate=2",
    "model.freeze=nothing",
    "model.freeze=layer2 model.normalize=half",
    "objective=siglip",
    "objective.label_smoothing=0.1",
    "data.val=null",
    "optim.ema_decay=0.9 optim.part_lr={{head:_0.1}}",
    "data.sampler={{name:_mix,weights:_[1]}}",
    "epochs=2 model.thaw={{50%:_layer3}} optim.part_lr={{tower:_0.1}}",
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return workspace(tmp_path_factory.mktemp("recipes"))


@pytest.fixture(autouse=True)
def surroundings(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HOME", places["home"])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    yield
    shutil.rmtree(Path(places["folder"]) / "run", ignore_errors=True)


def read(text: str, places: dict[str, str]) -> TrainConfig:
    return load_config(TrainConfig, Path(places["recipe"]), words_of(text.split(), places))


def refused_by_the_doctor(config: TrainConfig, processes: int = 1) -> list[str]:
    early = mistakes(config, processes)
    if early:
        return early
    examined = Examined(config, processes)
    findings = [finding for check in CHECKS for finding in findings_of(check, examined)]
    return [finding.what for finding in findings if finding.level == "error"]


def refused_by_the_trainer(config: TrainConfig) -> str | None:
    """The sentence with which a run of one process does not open."""
    from accelerate.state import AcceleratorState

    from eval.validation import make_validation
    from trainer.run.opening import open_run

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        expect_startable(config, 1)
        run = open_run(config, make_validation)
    except ShardclipError as error:
        return str(error)
    run.trackers.finish({})
    run.resources.close()
    return None


@pytest.mark.parametrize("text", BROKEN)
def test_what_does_not_start_is_refused_by_both(places: dict[str, str], text: str) -> None:
    config = read(text, places)
    of_trainer, of_doctor = refused_by_the_trainer(config), refused_by_the_doctor(config)
    assert of_trainer is not None, f"it starts, though the doctor says {of_doctor}"
    assert of_doctor, f"the doctor finds nothing, but {of_trainer}"


@pytest.mark.parametrize("text", SOUND)
def test_what_the_doctor_passes_starts(places: dict[str, str], text: str) -> None:
    config = read(text, places)
    assert refused_by_the_doctor(config) == []
    assert refused_by_the_trainer(config) is None


def test_there_are_forty() -> None:
    assert len(BROKEN) >= 40


@pytest.mark.parametrize(
    ("text", "processes", "sentence"),
    [
        ("epochs=1", 3, "which 3 processes cannot share equally"),
        ("accumulate=4", 4, "accumulate is 4: a process has 2 of the 8 pairs"),
        ("model.sync_batchnorm=true", 2, "model.sync_batchnorm needs GPUs"),
    ],
)
def test_what_several_processes_cannot_do(places: dict[str, str], text: str, processes: int, sentence: str) -> None:
    config = read(text, places)
    assert refused_by_the_doctor(config, 1) == []
    assert sentence in " ".join(refused_by_the_doctor(config, processes))


def test_a_machine_of_several_does_not_ask_for_trackers_before_it_meets_the_others(places: dict[str, str]) -> None:
    config = read("tracking.wandb=online", places)
    with pytest.raises(ConfigError, match=r"tracking\.wandb is online, but there is no wandb key"):
        expect_startable(config, 2)
    expect_startable(config, 2, machines=2)


def test_memory_that_is_not_there_is_an_error(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    from launch import doctor

    config = read("epochs=1", places)
    examined = doctor.Examined(config, 1)
    needed = 2 * doctor.state_bytes(config, examined.model()[0])
    for free, level in ((needed * 3, "ok"), (needed * 3 // 2, "warning"), (needed // 2, "error")):
        memory = psutil.virtual_memory()._replace(available=free)
        monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda memory=memory: memory)
        finding = next(f for f in doctor.check_memory(examined) if "copies" in f.what)
        assert finding.level == level and bool(finding.repair) == (level != "ok")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("text", [*BROKEN[::9], *SOUND[::4]])
def test_the_same_as_commands(places: dict[str, str], text: str, processes: int) -> None:
    words = [places["recipe"], *words_of(text.split(), places), "--processes", str(processes)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    codes = [
        subprocess.run(
            [sys.executable, "-m", "launch.cli", verb, *words], env=environment, capture_output=True, timeout=240
        ).returncode
        for verb in ("doctor", "train")
    ]
    assert codes == ([0, 0] if text in SOUND else [1, 2])
