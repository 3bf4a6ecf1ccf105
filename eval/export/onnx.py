"""`--to onnx`: normalisation, tower and head as one graph, for any number of pictures. The one door to onnx."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from core.errors import ConfigError
from eval.encoder import LoadedEncoder
from eval.export.form import WholeEncoder, expect_equal, some_pictures

GRAPH, INPUT, OUTPUT = "image_encoder.onnx", "images", "features"
_ONE_FILE = 1_500_000_000  # bytes of weights; a file of this kind holds at most 2 GiB


def write(encoder: LoadedEncoder, folder: Path) -> str:
    """`image_encoder.onnx`; what it gives in onnxruntime is compared before it leaves."""
    onnx, onnxruntime = _libraries()
    whole = WholeEncoder(encoder).eval()
    path = folder / GRAPH
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in whole.state_dict().values())
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            whole,
            (some_pictures(encoder),),
            path,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            external_data=weight_bytes > _ONE_FILE,
            verbose=False,
        )
    graph = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(graph, {name: json.dumps(value) for name, value in _facts(encoder).items()})
    path.write_bytes(graph.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        pictures = some_pictures(encoder, count)
        with torch.no_grad():
            expected = whole(pictures)
        (features,) = session.run([OUTPUT], {INPUT: pictures.numpy()})
        expect_equal(torch.from_numpy(features), expected, "onnx")
    lines = [
        "import onnxruntime",
        "import torch",
        "",
        f'session = onnxruntime.InferenceSession(FOLDER / "{GRAPH}")  # float32, {INPUT} -> {OUTPUT}',
        "",
        "",
        "def encode(pictures):  # normalises them itself",
        f'    return torch.from_numpy(session.run(["{OUTPUT}"], {{"{INPUT}": pictures.numpy()}})[0])',
    ]
    return "\n".join(lines)


def _libraries() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter asks for it
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"export --to onnx needs {error.name}, which is not installed: run `pip install 'shardclip[onnx]'`."
        ) from error
    return onnx, onnxruntime


def _facts(encoder: LoadedEncoder) -> dict[str, Any]:
    """What the graph cannot say, kept in its properties."""
    return {"tower": encoder.identity["model"]["tower"], "logit_scale": encoder.logit_scale}


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter tells of its own progress and of operators that are not asked for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)
