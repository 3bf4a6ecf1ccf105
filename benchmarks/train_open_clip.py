"""One run of open_clip's own training script, read from its log; and what its text tower costs.

Runs by `benchmarks.measure.in_own_process` with .peers on the path: `python -m benchmarks.train_open_clip run JSON`.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MODEL = "shardclip-benchmark"
_LINE = re.compile(r"\[ *(\d+)/\d+ .*Data \(t\): ([\d.]+) Batch \(t\): ([\d.]+),")


@dataclass(frozen=True)
class Job:
    """What both trainers do."""

    shards: str  # a shard set of 256 px JPEGs
    num_shards: int
    tower: str  # a ResNet by the name that torchvision and timm share
    embed_dim: int
    image_size: int
    batch_size: int
    steps: int
    warm_steps: int  # taken first and not counted: compilers, caches, shuffle buffers
    log_every: int
    workers: int
    device: str  # cpu: float32; cuda: bf16, compiled

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def run(job: Job) -> dict[str, float]:
    """Images/s and the share of the step spent waiting for data, of the steps after the first ones."""
    import open_clip
    from open_clip_train.main import main

    with tempfile.TemporaryDirectory() as folder:
        _write_model(job, Path(folder))
        open_clip.add_model_config(folder)
        main(_arguments(job, folder))
        return _read_log((Path(folder) / "run" / "out.log").read_text(), job)


def text_share(job: Job, rounds: int = 5) -> dict[str, float]:
    """Share of forward and backward that the text tower takes, which our runs do not have at all; float32, eager."""
    import open_clip
    import torch

    with tempfile.TemporaryDirectory() as folder:
        _write_model(job, Path(folder))
        open_clip.add_model_config(folder)
        model = open_clip.create_model(MODEL, device=job.device).train()
    images = torch.randn(job.batch_size, 3, job.image_size, job.image_size, device=job.device)
    tokens = open_clip.get_tokenizer(MODEL)(["a dog runs over a field"] * job.batch_size).to(job.device)
    seconds = {"image": 0.0, "text": 0.0}
    for number in range(rounds + 1):
        for name, encode, inputs in (("image", model.encode_image, images), ("text", model.encode_text, tokens)):
            start = time.perf_counter()
            encode(inputs, normalize=True).sum().backward()
            if job.device == "cuda":
                torch.cuda.synchronize()
            seconds[name] += (time.perf_counter() - start) * (number > 0)
    return {"text_share": seconds["text"] / sum(seconds.values())}


def _write_model(job: Job, folder: Path) -> None:
    """The tower with our head's shape, and the smallest text tower that the script takes."""
    vision = {
        "timm_model_name": job.tower,
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "mlp",
        "image_size": job.image_size,
    }
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    content = {"embed_dim": job.embed_dim, "vision_cfg": vision, "text_cfg": text}
    (folder / f"{MODEL}.json").write_text(json.dumps(content))


def _arguments(job: Job, logs: str) -> list[str]:
    on_gpu = job.device == "cuda"
    options = {
        "model": MODEL,
        "train-data": f"{job.shards}/train-{{00000..{job.num_shards - 1:05d}}}.tar",
        "train-num-samples": job.steps * job.batch_size,
        "dataset-type": "webdataset",
        "batch-size": job.batch_size,
        "workers": job.workers,
        "epochs": 1,
        "warmup": 0,
        "grad-clip-norm": 1.0,
        "precision": "amp_bf16" if on_gpu else "fp32",
        "device": job.device,
        "log-every-n-steps": job.log_every,
        "save-frequency": 0,
        "logs": logs,
        "name": "run",
    }
    switches = ["--local-loss", "--gather-with-grad", *(["--torchcompile"] if on_gpu else [])]
    return [*switches, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def _read_log(log: str, job: Job) -> dict[str, float]:
    """The script's own figures: each line's are means over the steps since the line before."""
    steps = data_s = batch_s = 0.0
    before = 0
    for samples, data, batch in _LINE.findall(log):
        done = int(samples) // job.batch_size
        if before >= job.warm_steps:
            steps += done - before
            data_s += float(data) * (done - before)
            batch_s += float(batch) * (done - before)
        before = done
    if not steps:
        raise RuntimeError(f"no line after step {job.warm_steps} in open_clip's log:\n{log[-2000:]}")
    return {"images_per_s": steps * job.batch_size / batch_s, "wait_share": data_s / batch_s}


if __name__ == "__main__":
    task: dict[str, Any] = {"run": run, "text-share": text_share}
    print(json.dumps(task[sys.argv[1]](Job(**json.loads(sys.argv[2])))))
