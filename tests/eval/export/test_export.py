"""Exported encoders load with the libraries' own code, as their card says it, and give the features of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from saved_runs import write_run
from shard_sets import make_shard_set

from core.config import from_mapping
from core.errors import CheckpointError, ConfigError, ShardclipError, StorageError
from core.manifest import TextEncoderSpec
from eval.encoder import load_encoder
from eval.export import FORMS
from eval.export.early import expect_exportable
from eval.export.export import export
from eval.export.form import MOST_APART, expect_equal
from trainer.config import TrainConfig
from trainer.models.build import build_encoder
from trainer.models.trained import TrainedModel
from trainer.run.start_from import Source, Start, fill, read_source

QUIET = Console(quiet=True)
SIZE = 32


def loaded_by_its_card(folder: Path) -> Any:
    """`encode`, made by the Python code of the model card alone."""
    card = (folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace('Path(".")', f"Path({str(folder)!r})")
    made: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), made)
    return made["encode"]


def features_of(run: Path, pictures: torch.Tensor) -> torch.Tensor:
    """What the run's own encoder gives, by its own normalisation of uint8 pictures."""
    encoder = load_encoder(run, torch.device("cpu"))
    with torch.inference_mode():
        return encoder.model.image_features(encoder.normalize((pictures * 255).round().to(torch.uint8)))


def pictures(count: int) -> torch.Tensor:
    """Floats 0 to 1 that are levels of 255, in large blocks."""
    blocks = np.random.default_rng(count).integers(0, 256, (count, 3, 4, 4), dtype=np.uint8)
    return torch.from_numpy(blocks.repeat(SIZE // 4, 2).repeat(SIZE // 4, 3)).float() / 255


CASES = [
    ("torchvision", "shufflenet_v2_x0_5", "infonce"),
    ("torchvision", "torchvision:vit_b_32", "siglip"),
    ("torchvision", "resnet18", "nt_xent"),
    ("timm", "timm:test_resnet", "infonce"),
    ("timm", "timm:test_vit", "infonce"),
    ("safetensors", "shufflenet_v2_x0_5", "infonce"),
    ("safetensors", "timm:test_resnet", "nt_xent"),
    ("onnx", "shufflenet_v2_x0_5", "infonce"),
    ("onnx", "timm:test_vit", "siglip"),
    ("mteb", "shufflenet_v2_x0_5", "infonce"),
    ("mteb", "timm:test_vit", "nt_xent"),
]
LIBRARIES = {"onnx": "onnxruntime", "mteb": "mteb"}  # of forms whose library may be absent


@pytest.mark.parametrize(("form", "tower", "objective"), CASES)
def test_the_card_loads_it_and_features_are_equal(tmp_path: Path, form: str, tower: str, objective: str) -> None:
    run = write_run(tmp_path / "run", tower=tower, objective=objective, size=SIZE)
    if form in LIBRARIES:
        pytest.importorskip(
            LIBRARIES[form], reason=f"{LIBRARIES[form]} is not installed: pip install 'shardclip[{form}]'"
        )
    out = export(run, form, tmp_path / "out", QUIET)
    encode = loaded_by_its_card(out)
    for count in (1, 2, 7):
        found, expected = encode(pictures(count)), features_of(run, pictures(count))
        assert found.shape == expected.shape
        assert float((found - expected).abs().max()) <= MOST_APART
    assert float((expected[0] - expected[1]).abs().max()) > 10 * MOST_APART  # pictures can be told apart


def test_every_form_has_a_case() -> None:
    assert {form for form, _, _ in CASES} == set(FORMS)


def test_temperature_and_what_pictures_need_leave_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", objective="siglip", size=24, stored=40, fit="pad")
    out = export(run, "safetensors", tmp_path / "out", QUIET)
    facts = json.loads((out / "encoder.json").read_text())
    encoder = load_encoder(run, torch.device("cpu"))
    assert facts["logit_scale"] == encoder.logit_scale == pytest.approx(10)
    assert facts["learned"] == {"scale": pytest.approx(10), "bias": -10}
    assert facts["image"] == {**encoder.identity["image"], "stored_size": 40, "filter": "bicubic"}
    assert (facts["embed_dim"], facts["text_encoder"]["name"]) == (8, "random")
    card = (out / "README.md").read_text()
    assert (
        "the longer side resized to 40" in card and "resized to 24 x 24" in card and "10.0000 (1 / temperature)" in card
    )


def test_another_run_starts_from_an_exported_encoder_as_from_its_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", objective="siglip")
    file = export(run, "safetensors", tmp_path / "out", QUIET) / "encoder.safetensors"

    def start(start_from: Path, text_encoder: TextEncoderSpec | None = None) -> tuple[Source, TrainedModel, Start]:
        values: dict[str, Any] = {"run_dir": tmp_path / "new", "data": {"train": "set"}, "global_batch_size": 8}
        values |= {"objective": {"name": "siglip", "init_bias": -3}, "model": {"tower": "small", "hidden_dim": 16}}
        config = from_mapping(TrainConfig, {**values, "start_from": str(start_from)}, "test")
        source, objective = read_source(config), config.build_objective()
        assert source is not None
        model = TrainedModel(build_encoder(config.model, objective, 8, SIZE, None, source.normalization), objective)
        begun = fill(model, source, config, text_encoder)
        assert begun is not None
        return source, model, begun

    (source, model, begun), (_, of_run, of_run_begun) = start(file), start(run)
    assert begun.left == of_run_begun.left == {} and begun.taken == of_run_begun.taken
    assert {"logit_scale", "logit_bias"} <= set(begun.taken) and model.learned["logit_bias"].item() == -10
    for name, tensor in of_run.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    other = TextEncoderSpec("other", "0", 8, "1" * 64)
    with pytest.raises(ConfigError, match="captions embedded by random .* by other .*start_parts=tower"):
        start(file, other)
    assert source.normalization == model.encoder.normalization
    facts = json.loads((tmp_path / "out/encoder.json").read_text())
    facts["model"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    (tmp_path / "out/encoder.json").write_text(json.dumps(facts))
    assert start(file)[0].normalization == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    (tmp_path / "out/encoder.json").write_text("{}")
    with pytest.raises(CheckpointError, match="encoder.json beside encoder.safetensors is damaged .* Export again"):
        start(file)


def test_the_card_has_recall_data_and_recipe(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path / "photos-train", 5, num_captions=2)
    config = {"data": {"train": [url, "gone/other-train"]}, "epochs": 7}
    run = write_run(tmp_path / "run", config=config)
    card = (export(run, "safetensors", tmp_path / "unmeasured", QUIET) / "README.md").read_text()
    assert "Not measured: `shardclip eval`" in card
    assert "- photos-train: 5 pictures, 10 captions\n- other-train\n" in card and "epochs: 7" in card
    figures = {f"{d}/recall@{k}": 0.25 + k / 100 for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    results = {"encoder": "another", "figures": figures, "shards": [{"url": "x/val", "split": "val"}]}
    (run / "results.json").write_text(json.dumps(results))
    assert "Not measured" in (export(run, "safetensors", tmp_path / "other", QUIET) / "README.md").read_text()
    results["encoder"] = load_encoder(run, torch.device("cpu")).fingerprint
    (run / "eval").mkdir()
    (run / "eval" / "results.json").write_text(json.dumps(results))
    card = (export(run, "safetensors", tmp_path / "measured", QUIET) / "README.md").read_text()
    assert "On val (val):" in card and "| image to text | 26.0 % | 30.0 % | 35.0 % |" in card


def test_a_run_that_was_not_evaluated_shows_its_validation(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    names = [f"val/{d}/recall@{k}" for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    rows = [",".join(["step", "samples_seen", "time", *names]), "2,16,1.0" + ",0.1" * 6, "3,24,2.0" + ",0.5" * 6]
    (run / "metrics.csv").write_text("\n".join(rows) + "\n")
    card = (export(run, "safetensors", tmp_path / "out", QUIET) / "README.md").read_text()
    assert "On the validation set, in training:" in card and "| text to image | 50.0 % | 50.0 % | 50.0 % |" in card


@pytest.mark.parametrize(
    ("form", "tower", "error", "sentence"),
    [
        ("onx", "small", ConfigError, "export: no form 'onx'. Did you mean 'onnx'?"),
        ("timm", "shufflenet_v2_x0_5", ConfigError, "of torchvision. Use --to torchvision."),
        ("torchvision", "timm:test_resnet", ConfigError, "has a tower of timm. Use --to timm."),
    ],
)
def test_a_form_that_cannot_be_had_leaves_nothing(
    tmp_path: Path, form: str, tower: str, error: type[Exception], sentence: str
) -> None:
    run = write_run(tmp_path / "run", tower=tower, size=SIZE)
    with pytest.raises(error) as raised:
        export(run, form, tmp_path / "out", QUIET)
    assert sentence in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_folder_that_holds_other_things_is_refused(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    export(run, "safetensors", out, QUIET)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for place in (out, out / "README.md"):
        with pytest.raises(StorageError, match="holds other things"):
            export(run, "safetensors", place, QUIET)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    for place in (Path("/"), Path.home()):
        with pytest.raises(ConfigError, match="Name a folder of its own"):
            expect_exportable(run, "safetensors", place)


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, empty = write_run(tmp_path / "run"), tmp_path / "empty"
    empty.mkdir()

    def half(encoder: Any, folder: Path) -> str:
        (folder / "half").write_text("half")
        raise RuntimeError("planted")

    monkeypatch.setattr("eval.export.safetensors.write", half)
    for out in (tmp_path / "out", empty):
        with pytest.raises(RuntimeError, match="planted"):
            export(run, "safetensors", out, QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "run"] and not list(empty.iterdir())


def test_features_that_differ_do_not_leave() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    expect_equal(vectors + MOST_APART / 2, vectors, "onnx")
    for wrong in (vectors + 2 * MOST_APART, vectors * torch.nan):
        with pytest.raises(ShardclipError, match="off those of the checkpoint"):
            expect_equal(wrong, vectors, "onnx")
