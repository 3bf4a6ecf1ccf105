"""Shards go both ways: open_clip's own loader reads ours, and what img2dataset writes is adopted and trained on.

Needs the peers (`make peers`); skips without them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shard_sets import make_shard_set

from core.config import Choice
from core.shard_set import ShardSet
from shard_builder.embed import embed_shards
from shard_builder.index_tars import index_shards
from shard_builder.verify import verify
from trainer.data.loader import TrainLoader

PEERS = Path(__file__).resolve().parents[2] / ".peers"


OPEN_CLIP_READER = """
import json, sys
from types import SimpleNamespace
import numpy as np, torch
from open_clip_train.data import get_wds_dataset

url = sys.argv[1]
arguments = SimpleNamespace(
    train_data=url + "/train-{00000..00003}.tar", val_data=None, dataset_resampled=False, train_num_samples=40,
    train_data_upsampling_factors=None, batch_size=8, world_size=1, workers=1, seed=0, rank=0, distributed=False,
)
preprocess = lambda image: torch.from_numpy(np.asarray(image.convert("RGB")).copy())
loader = get_wds_dataset(arguments, preprocess, is_train=True, tokenizer=lambda text: [text]).dataloader
pairs = [(text, image) for images, texts in loader for image, text in zip(images, texts)]
print(json.dumps([[text, image.float().mean().item()] for text, image in pairs]))
"""


def test_open_clip_reads_our_shards(tmp_path: Path) -> None:
    if not (PEERS / "open_clip_train").is_dir():
        pytest.skip("open_clip is not installed (make peers)")
    url = make_shard_set(tmp_path / "set", 40, size=32)
    # In a process of its own, with the older webdataset that open_clip asks for.
    environment = {**os.environ, "PYTHONPATH": str(PEERS)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OPEN_CLIP_READER, url], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    seen = dict(json.loads(done.stdout.splitlines()[-1]))
    ours = ShardSet.open(url)
    assert set(seen) == {ours.captions(sample)[0] for sample in range(40)} and len(seen) == 40
    loader = TrainLoader(ours, global_batch_size=40)
    batch = next(iter(loader.epoch(0)))
    for sample, image in zip(batch.samples.tolist(), batch.images):
        assert seen[ours.captions(sample)[0]] == pytest.approx(image.float().mean().item(), abs=1.0)


def test_what_img2dataset_writes_is_adopted_and_trained_on(tmp_path: Path, shared_data: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="img2dataset is not installed (make peers)")
    writer_module = pytest.importorskip("img2dataset.writer", reason="img2dataset is not installed (make peers)")
    resizer_module = pytest.importorskip("img2dataset.resizer", reason="img2dataset is not installed (make peers)")
    annotations = json.loads((shared_data / "coco" / "annotations" / "captions_val.json").read_text())
    caption_of = {a["image_id"]: a["caption"] for a in reversed(annotations["annotations"])}
    folder = tmp_path / "cc"
    folder.mkdir()
    resizer = resizer_module.Resizer(
        image_size=64, resize_mode="keep_ratio", resize_only_if_bigger=True, encode_quality=95, encode_format="jpg"
    )
    schema = pa.schema([("key", pa.string()), ("caption", pa.string()), ("status", pa.string())])
    writer = writer_module.WebDatasetSampleWriter(0, str(folder), True, 5, schema, "jpg")
    images = annotations["images"][:24]
    for number, image in enumerate(images):
        with open(shared_data / "coco" / "images" / image["file_name"], "rb") as stream:
            resized, *_, error = resizer(stream)
        assert error is None
        key, caption = f"{number:09d}", caption_of[image["id"]]
        writer.write(resized, key, caption, {"key": key, "caption": caption, "status": "success"})
    writer.close()

    manifest = index_shards(str(folder), size=64)
    embed_shards(str(folder), Choice("minilm"), cache_dir=tmp_path / "cache")
    assert manifest.num_samples == 24 and manifest.image.codec == "mixed" and verify(str(folder)) == []
    loader = TrainLoader(ShardSet.open(str(folder)), global_batch_size=8)
    batches = list(loader.epoch(0))
    assert sorted(int(s) for batch in batches for s in batch.samples) == list(range(24))
    assert batches[0].images.shape == (8, 3, 64, 64) and batches[0].text.shape == (8, 384)
