"""The `shardclip` command: one verb per stage; every verb takes a recipe and `key=value` overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from core.config import load_config
from core.places import expect_given
from eval.export import FORMS
from launch.leaving import kept, run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train CLIP-style image encoders: build shards once, stream them to every GPU, follow recall.",
)
console = Console(highlight=False, soft_wrap=True)
_EMBEDDED = "Finished columns stay, and embedded captions in {}: the same command goes on from them."
_EVALUATED = "An earlier evaluation may be replaced in part, report.html last: the same command writes all of it anew."
Recipe = Annotated[Path, typer.Argument(help="A YAML recipe of configs/.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, as in optim.lr=3e-4", show_default=False)]
# Paths are text until they are known not to be blank: Path("") is the folder that one stands in.
CacheDir = Annotated[str, typer.Option(help="For caption embeddings, and files of remote sets.")]
Processes = Annotated[int | None, typer.Option(help="On this machine; default one per GPU.")]
Shards = Annotated[str, typer.Argument(help="A shard set: folder or URL.", show_default=False)]


def main() -> None:
    """Run a verb; mistakes that people can mend end in one sentence and exit code 2."""
    run(app)


@app.command()
def build(recipe: Recipe, overrides: Overrides = None) -> None:
    """Turn captioned images into a shard set; killed or finished, run it again.

    Example: shardclip build configs/build/coco2014_train.yaml source.images=/data/train2014
    """
    from shard_builder.build import build_shards
    from shard_builder.config import BuildConfig

    config = load_config(BuildConfig, recipe, overrides or [])
    with kept(f"The finished shards stay in {config.out}: the same command goes on from them."):
        build_shards(config, console)


@app.command()
def plan(recipe: Recipe, overrides: Overrides = None) -> None:
    """Say before a build how long it takes, how many bytes, and how many loader workers feed one GPU.

    Example: shardclip plan configs/build/coco2014_train.yaml
    """
    from shard_builder.config import BuildConfig
    from shard_builder.estimate import estimate_build

    with kept("A plan writes nothing."):
        estimate_build(load_config(BuildConfig, recipe, overrides or []), console=console)


@app.command()
def verify(
    shards: Shards,
    deep: Annotated[bool, typer.Option("--deep", help="Read all through the webdataset library too.")] = False,
) -> None:
    """Check every byte of a shard set against its manifest; list every fault; exit code 1 if there is one.

    --deep reads every sample through the webdataset library as well, and compares.

    Example: shardclip verify data/coco2014-train
    """
    from shard_builder.verify import verify as find_faults

    with kept("Checking changes nothing."):
        faults = find_faults(shards, console=console, deep=deep)
    raise typer.Exit(1 if faults else 0)


@app.command()
def preview(
    shards: Shards,
    out: Annotated[str, typer.Option(help="Where the picture goes.")] = "preview.jpg",
    count: Annotated[int, typer.Option(help="How many images.")] = 24,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 0,
    query: Annotated[str | None, typer.Option(help="Only images with this text in a caption.")] = None,
) -> None:
    """Make a picture of random images with their captions.

    Example: shardclip preview data/coco2014-train --query "a dog" --out dogs.jpg
    """
    from shard_builder.preview import preview as draw

    with kept("No picture was written."):
        draw(shards, _path(out, "--out"), count, seed, query, console=console)


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    processes: Processes = None,
    accelerate_config: Annotated[Path | None, typer.Option(help="As launch/accelerate/gpu_8.yaml.")] = None,
    num_machines: Annotated[int | None, typer.Option(help="Each starts this command.")] = None,
    machine_rank: Annotated[int | None, typer.Option(help="Of this machine, from 0.")] = None,
    main_address: Annotated[str | None, typer.Option(help="HOST or HOST:PORT of machine 0.")] = None,
) -> None:
    """Train an image encoder, with a process per GPU; exit codes 0, 2, 3 (a process was lost), 75 (saved, go on).

    Example: shardclip train configs/train/coco2014_resnet50.yaml optim.lr=3e-4
    """
    from launch.early import expect_startable
    from launch.launcher import TRAINING, launch
    from launch.machines import words_of
    from trainer.config import TrainConfig

    with kept("No process was started."):
        words = words_of(processes, accelerate_config, num_machines, machine_rank, main_address)
        expect_startable(load_config(TrainConfig, recipe, overrides or []), words.total, words.machines.count)
        code = launch(TRAINING, [str(recipe), *(overrides or [])], words)
    raise SystemExit(code)


@app.command()
def doctor(recipe: Recipe, overrides: Overrides = None, processes: Processes = None) -> None:
    """Read a training recipe, its shards and this environment; name what is wrong, each with its repair.

    Example: shardclip doctor configs/train/coco2014_resnet50.yaml --processes 2
    """
    from launch.examine import examine
    from trainer.config import TrainConfig

    with kept("Looking changes nothing."):
        found_errors = examine(load_config(TrainConfig, recipe, overrides or []), processes, console)
    raise typer.Exit(1 if found_errors else 0)


@app.command("eval")
def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(help="On this machine; each takes its share.")] = 1,
) -> None:
    """Measure a checkpoint: recall both ways, queries, zero-shot and more; writes results.json and report.html.

    Example: shardclip eval configs/eval/coco2014_val.yaml checkpoint=runs/coco2014_resnet50
    """
    from eval.config import EvalConfig
    from eval.early import expect_measurable

    config = load_config(EvalConfig, recipe, overrides or [])
    with kept(_EVALUATED):
        expect_measurable(config)
        if processes == 1:
            from eval.evaluate import evaluate as measure

            measure(config, console)
            return
        from launch.launcher import EVALUATION, launch
        from launch.leaving import INTERRUPTED
        from launch.machines import words_of

        code = launch(EVALUATION, [str(recipe), *(overrides or [])], words_of(processes, None, None, None, None))
        if code == INTERRUPTED:
            raise KeyboardInterrupt
    raise SystemExit(code)


@app.command()
def report(run: Annotated[str, typer.Argument(help="A run folder that `eval` has measured.")]) -> None:
    """Write report.html again from what lies in the run folder.

    Example: shardclip report runs/coco2014_resnet50
    """
    from eval.early import expect_measured

    folder = _path(run, "RUN")
    with kept("An earlier report stays as it was."):
        expect_measured(folder)
        from eval.report.page import write_report

        console.print(f"report: {write_report(folder)}", markup=False)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Run folders that `eval` has measured.", show_default=False)],
    out: Annotated[str, typer.Option(help="Where compare.html and compare.json go.")] = "compare",
    curves_only: Annotated[bool, typer.Option("--curves-only", help="Of runs measured on other shards.")] = False,
) -> None:
    """Hold runs against the first: figures with paired intervals, curves, recipes, queries that one of them finds.

    Example: shardclip compare runs/before runs/after
    """
    from eval.compare.early import expect_comparable

    folders, place = [_path(run, "RUN") for run in runs], _path(out, "--out")
    with kept("An earlier comparison may be replaced in part, compare.html last."):
        found = expect_comparable(folders, place, curves_only)
        from eval.compare.compare import compare as write

        write(found, place, console, curves_only)


@app.command("index-shards")
def index_shards(
    shards: Shards,
    size: Annotated[int, typer.Option(help="Side of the images when they are read, in pixels.")] = 224,
    split: Annotated[str, typer.Option(help="Name of the split.")] = "train",
) -> None:
    """Adopt tars of img2dataset or any WebDataset (jpg, png or webp with txt or json); the tars stay as they are.

    Example: shardclip index-shards data/cc3m && shardclip embed data/cc3m --encoder minilm
    """
    from shard_builder.index_tars import index_shards as index

    with kept("The set is as it was before."):
        index(shards, split, size, console=console)


@app.command()
def embed(
    shards: Annotated[list[str], typer.Argument(help="Shard sets: folders or URLs.", show_default=False)],
    encoder: Annotated[str, typer.Option(help="A frozen text encoder: hf_clip, minilm or sentence.")] = "hf_clip",
    model: Annotated[str | None, typer.Option(help="Its model: a hub name or a folder.")] = None,
    cache_dir: CacheDir = "~/.cache/shardclip",
) -> None:
    """Add caption embeddings to sets, built or adopted: the same as `column text`.

    Example: shardclip embed data/cc3m --encoder hf_clip --model openai/clip-vit-base-patch32
    """
    from core.config import Choice
    from shard_builder.embed import embed_shards

    choice = Choice(encoder, {"model": model} if model else {})
    with kept(_EMBEDDED.format(cache_dir)):
        embed_shards(shards, choice, cache_dir=_path(cache_dir, "--cache-dir"), console=console)


@app.command()
def column(
    words: Annotated[
        list[str],
        typer.Argument(metavar="KIND SET [SET...] [key=value...]", help="labels, tokens, text, topics, features; list"),
    ],
    cache_dir: CacheDir = "~/.cache/shardclip",
) -> None:
    """Add what is known of the samples later to sets, which stay as they are; `column list SET` shows what is there.

    Example: shardclip column labels data/coco2014-train file=labels.csv
    """
    from launch.columns import column as make

    with kept(_EMBEDDED.format(cache_dir)):
        make(words, _path(cache_dir, "--cache-dir"), console)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A run folder, RUN/best, RUN/latest or a checkpoint.", show_default=False)],
    out: Annotated[str, typer.Argument(help="A new folder.", show_default=False)],
    to: Annotated[str, typer.Option(help=f"{', '.join(FORMS)}.", show_default=False)],
) -> None:
    """Write a trained encoder for use elsewhere, with a model card; whole or not at all.

    Example: shardclip export runs/coco2014_resnet50 --to onnx exported/coco_onnx
    """
    from eval.export.early import expect_exportable

    source, folder = _path(run, "RUN"), _path(out, "DIR")
    expect_exportable(source, to, folder)
    with kept("Nothing was written."):
        from eval.export.export import export as write

        write(source, to, folder, console)


@app.command()
def keys(verb: Annotated[str, typer.Argument(help="build, train or eval", show_default=False)]) -> None:
    """List every key of a recipe: default, type, what is allowed, what it means; the parts with their options too.

    Example: shardclip keys train
    """
    from launch.keys import spoken_keys

    console.print(spoken_keys(verb), markup=False)


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Where shards and run go.")] = "runs/demo",
) -> None:
    """Do the whole job in minutes on drawn scenes: build, train with two processes, evaluate, report.

    Example: shardclip demo
    """
    from core.places import DEMO, expect_folder_of_ours

    expect_folder_of_ours(out, "--out", DEMO)
    with kept(f"What is finished stays in {out}: the same command goes on from it."):
        from launch.demo import run_demo

        run_demo(Path(out), console)


def _path(text: str, option: str) -> Path:
    expect_given(text, option)
    return Path(text)


if __name__ == "__main__":
    main()
