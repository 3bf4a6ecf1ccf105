"""Two hundred mistakes over all verbs: words of a command line, in which {name} stands for what `workspace` makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from photo_folders import write_photos
from shard_sets import make_shard_set

TRAIN = """
run_dir: {folder}/run
data: {{train: {folder}/train, val: {folder}/val, num_workers: 0}}
global_batch_size: 8
epochs: 1
model: {{tower: resnet18, freeze: tower, hidden_dim: 16}}
optim: {{lr: 0.01, warmup_steps: 1}}
tracking: {{wandb: disabled}}
"""
BUILD = """
source: {{name: jsonl, file: {folder}/photos/captions.jsonl}}
out: {folder}/new
image: {{size: 32}}
samples_per_shard: 8
workers: 1
cache_dir: {folder}/cache
"""
EVAL = "checkpoint: {folder}/done/checkpoints/step-00000001\nshards: {folder}/val\nout: {folder}/measured\n"

# What a blank or common folder, other people's things, or a file are to a verb that writes.
_NO_PLACES = ["", "'_'", "{home}", "{home}/..", "{home}/photos/..", "{link}", "{photos}", "{classes}", "{jpg}", "~/new"]
_NO_CACHES = ["", "{home}", "{home}/..", "{link}", "~x/../{home}"][:4]
_NO_SETS = ["", "{folder}/nowhere", "{photos}", "{raw}", "{jpg}", "{lost}", "{cut}", "{tar}", "{torn}", "{folder}"]
_NO_RECIPES = ["", "nowhere.yaml", "{folder}", "{jpg}", "{broken}", "{list}", "{twice}", "{empty}"]

_BUILD_KEYS = [
    "source=jsonls",
    "source.file=",
    "source.file={folder}/none.jsonl",
    "source.file={folder}",
    "source.file={jpg}",
    "source.fil=x",
    "source=image_folder",
    "source=coco",
    "source={{}}",
    "source={{name:_image_folder,folder:_{folder}/none}}",
    "source={{name:_image_folder,folder:_{photos}}}",
    "source={{name:_image_folder,folder:_}}",
    "source={{name:_flickr8k,images:_{photos}}}",
    "source={{name:_coco,images:_{folder}/none,annotations:_{folder}/none.json}}",
    "out=null",
    "outt=x",
    "split=",
    "split=a/b",
    "split=a'_'b",
    "objective={{name:infonce}}",
    "image.size=8",
    "image.size=9999",
    "image.size=big",
    "image.size=",
    "image.fit=stretch",
    "image.codec=webp",
    "image.quality=0",
    "image.quality=101",
    "image.max_pixels=0",
    "image.side=3",
    "image=3",
    "text_encoder=minilmm",
    "text_encoder=",
    "text_encoder.model=x",
    "text_encoder={{name:_hf_clip,modell:_x}}",
    "text_encoder={{name:_sentence,precision:_fp8}}",
    "samples_per_shard=0",
    "samples_per_shard=ten",
    "seed=one",
    "max_skipped=2",
    "max_skipped=-1",
    "max_skipped=many",
    "workers=-1",
    "workers=two",
    "engine=thread",
    "engine.pillow=no",
    "engine.pillow_simd=perhaps",
    "text_batch_size=0",
    "cache_dir=null",
    "bare",
    "=x",
]

_TRAIN_KEYS = [
    "data.train=",
    "data.train={folder}/nowhere",
    "data.train={raw}",
    "data.train={photos}",
    "data.train={lost}",
    "data.train={train},{folder}/no",
    "data.val={folder}/nowhere",
    "data.val={wide}",
    "data.num_workers=-1",
    "data.prefetch=0",
    "data.max_damaged=-1",
    "data.sampler=unifrom",
    "data.sampler={{name:_mix,weight:_[1]}}",
    "data.sampler={{name:_mix,weights:_[1,2]}}",
    "data.sampler={{name:_class_balanced,column:_none}}",
    "data.columns={{label:_none}}",
    "data.columns={{image_id:_x}}",
    "data.text=nothing",
    "data.image_features=nothing",
    "data.window_shards=3",
    "data.cache_dir=",
    "data.cache_dir={home}",
    "data=3",
    "global_batch_size=1",
    "global_batch_size=64",
    "global_batch_size=eight",
    "epochs=0",
    "epochs=x",
    "max_steps=0",
    "accumulate=0",
    "accumulate=3",
    "seed=x",
    "precision=fp8",
    "deterministic=perhaps",
    "image_size=0",
    "model.tower=resnet19",
    "model.tower=",
    "model.tower=tim:resnet18",
    "model.tower=timm:mobilnetv3_smal",
    "model.weights=",
    "model.weights=/none/x.pth",
    "model.weights={folder}/x.pth",
    "model.weights={train}",
    "model.hidden_dim=-1",
    "model.dropout=1",
    "model.normalize=clipp",
    "model.text=minilmm",
    "model.towr=x",
    "augment.crop_scale=1",
    "augment.crop_scale=2,1",
    "augment.flip=3",
    "augment.blurr=1",
    "objective=infonse",
    "objective={{name:_infonce,label_smoothing:_2}}",
    "objective.label_smoothin=0.1",
    "objective=supcon",
    "loss=infonce",
    "optim.lr=0",
    "optim.lr=fast",
    "optim.lr=nan",
    "optim.part_lr={{tower:_0}}",
    "optim.betas=0.9",
    "optim.betas=0.9,2",
    "optim.eps=0",
    "optim.weight_decay=-1",
    "optim.max_grad_norm=0",
    "optim.warmup_steps=-1",
    "optim.warmup_steps=3",
    "optim.warmup_steps=500",
    "optim.min_lr_ratio=2",
    "optim.ema_decay=1",
    "optim.warmup_step=1",
    "log_every=0",
    "eval_every=-1",
    "eval_batch_size=0",
    "best_by=val/los",
    "best_by=accuracy",
    "checkpoint_every=-1",
    "keep_last=0",
    "resume=",
    "resume={folder}/run/checkpoints/step-00000001",
    "resume={train}",
    "start_from=",
    "start_from={folder}/nowhere",
    "start_from={train}",
    "start_from={folder}/none.pth",
    "start_parts=body",
    "start_parts=tower",
    "timeout_s=0",
    "peer_timeout_s=900",
    "tracking.wandb=maybe",
    "tracking.projekt=x",
    "run_dir=null",
    "run_dirr=x",
]

_EVAL_KEYS = [
    "checkpoint=",
    "checkpoint={folder}/nowhere",
    "checkpoint={train}",
    "checkpoint={run}/best",
    "checkpoint=null",
    "shards=",
    "shards={raw}",
    "protocols=full,cocoo",
    "classes_file={folder}/none.txt",
    "classes_file=",
    "templates=",
    "templates=photo",
    "templates_file={folder}/none.txt",
    "labelled_shards={folder}/nowhere",
    "gallery={folder}/nowhere",
    "text_encoder=minilmm",
    "baseline={folder}/nowhere",
    "baseline=",
    "num_examples=-1",
    "loss_batch_size=1",
    "batch_size=0",
    "num_workers=-1",
    "device=tpu",
    "precision=fp8",
    "queries=a,,b",
    "qeries=x",
    "cache_dir={home}",
    "evaluations=[{{name:_against,of:_{folder}/nowhere}}]",
    "evaluations=[{{name:_against,off:_{run}}}]",
]


def inputs() -> list[list[str]]:
    """Every mistake, as words without `shardclip`."""
    of_keys = [
        *(["build", "{build}", word] for word in _BUILD_KEYS),
        *(["train", "{recipe}", word] for word in _TRAIN_KEYS),
        *(["eval", "{measure}", word] for word in _EVAL_KEYS),
    ]
    of_places = [
        *([verb, "{build}", f"out={place}"] for verb in ("build", "plan") for place in _NO_PLACES),
        *([verb, "{build}", f"cache_dir={place}"] for verb in ("build", "plan") for place in _NO_CACHES),
        *(["train", "{recipe}", f"run_dir={place}"] for place in _NO_PLACES),
        *(["eval", "{measure}", f"out={place}"] for place in _NO_PLACES),
        *(["demo", "--out", place] for place in _NO_PLACES),
        *(["embed", "{train}", "--encoder", "minilm", "--cache-dir", place] for place in _NO_CACHES),
        *(["preview", "{train}", "--out", place] for place in ("", "{folder}", "x.pdf", "x")),
    ]
    of_sets = [
        *([verb, place] for verb in ("verify", "preview", "embed") for place in _NO_SETS),
        *(
            ["column", kind, place]
            for kind in ("labels", "list")
            for place in ("", "{folder}/nowhere", "{raw}", "{torn}")
        ),
        *(["index-shards", place] for place in ("", "{home}", "{folder}/nowhere", "{photos}", "{jpg}")),
        *(["report", place] for place in ("", "{folder}/nowhere", "{train}", "{jpg}")),
    ]
    of_recipes = [[verb, place] for verb in ("build", "plan", "train", "doctor", "eval") for place in _NO_RECIPES]
    return [*of_keys, *of_places, *of_sets, *of_recipes, *_KINDS, *_WORDS]


_KINDS = [  # recipes of the wrong kind
    [verb, place]
    for verb, places in {
        "build": ("{recipe}", "{measure}", "{accelerate}"),
        "plan": ("{recipe}", "{measure}"),
        "train": ("{build}", "{measure}", "{accelerate}"),
        "doctor": ("{build}", "{measure}"),
        "eval": ("{build}", "{recipe}", "{accelerate}"),
    }.items()
    for place in places
]
_WORDS = [  # of the command line itself
    ["compare"],
    ["compare", "{evaluated}"],
    ["compare", "{evaluated}", ""],
    ["compare", "{evaluated}", "{folder}/nowhere"],
    ["compare", "{evaluated}", "{jpg}"],
    ["compare", "{evaluated}", "{run}"],
    ["compare", "{evaluated}", "{elsewhere}"],
    ["compare", "{evaluated}", "{evaluated}", "--curves-only"],
    ["compare", "{evaluated}", "{evaluated}", "--out", ""],
    ["compare", "{evaluated}", "{evaluated}", "--out", "{photos}"],
    ["compare", "{evaluated}", "{older}"],
    ["compare", "{evaluated}", "{halved}"],
    ["trian", "{recipe}"],
    ["train"],
    ["train", "{recipe}", "--proceses", "2"],
    ["train", "{recipe}", "--processes", "two"],
    ["train", "{recipe}", "--processes", "0"],
    ["train", "{recipe}", "--processes", "-1"],
    ["train", "{recipe}", "--processes", "3"],
    ["train", "{recipe}", "--processes", "2", "accumulate=8"],
    ["train", "{recipe}", "--processes", "2", "--num-machines", "3", "--machine-rank", "0", "--main-address", "x"],
    ["train", "{recipe}", "--processes", "2", "optim.lr=fast"],
    ["train", "{recipe}", "--processes", "2", "run_dir={photos}"],
    ["train", "{recipe}", "--processes", "2", "data.train={raw}"],
    ["train", "{recipe}", "--num-machines", "2"],
    ["train", "{recipe}", "--num-machines", "0"],
    ["train", "{recipe}", "--num-machines", "2", "--machine-rank", "2", "--main-address", "x"],
    ["train", "{recipe}", "--machine-rank", "1"],
    ["train", "{recipe}", "--main-address", "x:port", "--num-machines", "2", "--machine-rank", "0"],
    ["train", "{recipe}", "--accelerate-config", "nowhere.yaml"],
    ["train", "{recipe}", "--accelerate-config", "{broken}"],
    ["train", "{recipe}", "--accelerate-config", "{words}"],
    ["train", "{recipe}", "--accelerate-config", "{accelerate}", "--processes", "2"],
    ["doctor", "{recipe}", "--processes", "3"],
    ["doctor", "{recipe}", "--processes", "0"],
    ["doctor", "{recipe}", "optim.warmup_steps=500"],
    ["doctor", "{recipe}", "run_dir={photos}"],
    ["doctor", "{recipe}", "model.tower=resnet19"],
    ["verify"],
    ["verify", "{train}", "{train}"],
    ["preview", "{train}", "--count", "0"],
    ["preview", "{train}", "--count", "x"],
    ["preview", "{train}", "--query", "zebra"],
    ["embed", "{train}", "--encoder", "minilmm"],
    ["embed", "{train}", "--encoder", "sentence", "--model", "{folder}/nowhere"],
    ["embed", "{train}", "{folder}/nowhere", "--encoder", "minilm"],
    ["index-shards", "{raw}", "--size", "big"],
    ["index-shards", "{train}"],
    ["column"],
    ["column", "lables", "{train}"],
    ["column", "labels", "{train}", "file={folder}/none.csv"],
    ["column", "labels", "{train}", "file="],
    ["column", "topics", "{train}", "num_topcs=3"],
    ["column", "topics", "{train}", "num_topics=many"],
    ["column", "topics", "{train}", "seed=1", "seed=2"],
    ["column", "tokens", "{train}", "encoder=minilmm"],
    ["column", "features", "{train}"],
    ["column", "features", "{train}", "tower=resnet18"],
    ["column", "features", "{train}", "recipe={folder}/none.yaml"],
    ["column", "text", "{train}", "encoder=sentence", "model={folder}/nowhere"],
]


def workspace(folder: Path) -> dict[str, str]:
    """Make what the mistakes speak of, with sound recipes among it; name -> its path."""
    home = folder / "home"
    (home / "photos").mkdir(parents=True)
    (folder / "link").symlink_to(home)
    for split, count in (("train", 24), ("val", 12)):
        make_shard_set(folder / split, count, size=32, split=split, seed=len(split))
    make_shard_set(folder / "wide", 12, embed_dim=16)
    for name in ("lost", "cut", "torn"):
        shutil.copytree(folder / "train", folder / name)
    (folder / "lost/train-00001.tar").unlink()
    (folder / "torn/manifest.json").write_text((folder / "torn/manifest.json").read_text()[:200])
    with open(folder / "cut/train-00001.tar", "r+b") as file:
        file.truncate(1000)
    (folder / "raw").mkdir()
    shutil.copy(folder / "train/train-00000.tar", folder / "raw/00000.tar")
    write_photos(folder / "photos", 6)
    (folder / "classes/cat").mkdir(parents=True)
    shutil.copy(folder / "photos/000.jpg", folder / "classes/cat/1.jpg")
    (folder / "done/checkpoints/step-00000001").mkdir(parents=True)  # as far as a name goes
    (folder / "done/run.json").touch()
    (folder / "empty-run").mkdir()
    (folder / "empty-run/run.json").write_text(json.dumps({"state": "failed", "started": "today"}))
    _write_evaluations(folder)
    files = {"recipe": TRAIN, "build": BUILD, "measure": EVAL}
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text.format(folder=folder))
    broken = {"broken": "a: [1", "list": "- a\n- b", "twice": "seed: 1\nseed: 2", "empty": ""}
    broken["accelerate"] = "compute_environment: LOCAL_MACHINE\ndistributed_type: NO\nnum_processes: 2\n"
    broken["words"] = "distributed_type: NO\nnum_processes: two\n"
    for name, text in broken.items():
        (folder / f"{name}.yaml").write_text(text)
    return {
        **{name: str(folder / f"{name}.yaml") for name in (*files, *broken)},
        **{name: str(folder / name) for name in ("home", "link", "train", "wide", "lost", "cut", "torn", "raw")},
        **{"folder": str(folder), "photos": str(folder / "photos"), "classes": str(folder / "classes")},
        **{name: str(folder / name) for name in ("evaluated", "elsewhere", "older", "halved")},
        **{"jpg": str(folder / "photos/000.jpg"), "run": str(folder / "empty-run")},
        "tar": str(folder / "raw/00000.tar"),
    }


def _write_evaluations(folder: Path) -> None:
    """As far as a comparison reads before it computes."""
    results = {"run_dir": ".", "checkpoint": "step-00000001", "captions_from": "", "protocol": "full", "figures": {}}
    for name in ("evaluated", "elsewhere"):
        (folder / name).mkdir()
        shards = [{"url": str(folder / name), "fingerprint": name}]
        (folder / name / "results.json").write_text(json.dumps({**results, "shards": shards}))
    for name, text in (("older", json.dumps({"run_dir": "."})), ("halved", '{"run_d')):
        (folder / name).mkdir()
        (folder / name / "results.json").write_text(text)


def words_of(line: list[str], places: dict[str, str]) -> list[str]:
    """The words with their places filled in; `:_` and `'_'` stand for a blank, since words are split at them."""
    return [word.replace(":_", ": ").replace("'_'", " ").format(**places) for word in line]
