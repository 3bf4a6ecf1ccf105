"""docs/extending.md is true: each part works with the one file and the lines that the page names, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("core", "shard_builder", "trainer", "eval", "launch")
_BLOCK = re.compile(r"```(python|diff)\n(.*?)```", re.DOTALL)
TRIALS = {  # heading -> a program that uses the part, and what it prints
    "A column kind": (
        f"import sys; sys.path.append({str(ROOT / 'tests')!r})\n"
        "from pathlib import Path; from rich.console import Console; from shard_sets import make_shard_set\n"
        "from core.shard_set import ShardSet; from launch.columns import column\n"
        "url = make_shard_set(Path('set'), 12, num_captions=2)\n"
        "column(['words', url, 'separator=of'], Path('cache'), Console(quiet=True))\n"
        "column(['words', url, 'separator=of'], Path('cache'), Console(quiet=True))\n"
        "print(ShardSet.open(url).column('words').of_captions(11).tolist())",
        "[2, 2]",
    ),
    "A reader": (
        "import pathlib; pathlib.Path('pairs.tsv').write_text('a.jpg\\ta dog\\nb.jpg\\t \\n')\n"
        "from core.config import Choice; from shard_builder.inputs import read_inputs\n"
        "found = read_inputs(Choice('pairs', {'file': 'pairs.tsv', 'images': 'photos'}), 'train')\n"
        "print(found.records[0].captions, [skip.reason for skip in found.skipped])",
        "('a dog',) ['no_captions']",
    ),
    "A sampler": (
        "import numpy as np; from core.config import Choice; from core import parts\n"
        "from trainer.samplers import SAMPLERS; from trainer.samplers.epoch import Epoch\n"
        "years = np.repeat([2000, 2020], 50); one = np.array([100])\n"
        "epoch = Epoch(0, 0, 10, 10, 100, one, one, {'labels.year': years}.__getitem__)\n"
        "order = parts.build(SAMPLERS, Choice('newest_first'), 'data.sampler', epoch=epoch)\n"
        "print(len(order), (years[order] == 2020).mean() > 0.9)",
        "100 True",
    ),
    "An evaluation": (
        "import numpy as np; from core.config import Choice\n"
        "from eval.evaluations import chosen, figures_of, measure_all\n"
        "from eval.evaluations.evaluation import Subject; from eval.report.measured import part_of, sections\n"
        "from eval.best import check_best_by, score; rows = np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 5]\n"
        "measured = measure_all(chosen([Choice('effective_rank')]), Subject(rows))\n"
        "found = {f'val/{name}': round(value, 6) for name, value in figures_of(measured).items()}\n"
        "check_best_by('val/effective_rank', found); print(found, score('val/effective_rank', found))\n"
        "part = {'shards': ['mine'], **part_of(measured['effective_rank'])}\n"
        "print(sections({'evaluations': {'effective_rank': [part]}}, [])[0].parts[0][1].values)",
        "{'val/effective_rank': 4.0} 4.0\n(('4.0', 'of 4'),)",
    ),
    "A form of export": (
        f"import sys; sys.path.append({str(ROOT / 'tests')!r})\n"
        "from pathlib import Path; import torch; from rich.console import Console; from saved_runs import write_run\n"
        "from eval.encoder import load_encoder; from eval.export.export import export\n"
        "from eval.export.form import WholeEncoder\n"
        "run = write_run(Path('run')); export(run, 'pt2', Path('out'), Console(quiet=True)); made = {}\n"
        "code = Path('out/README.md').read_text().split('```python\\n')[1].split('```')[0]\n"
        "exec(code.replace('Path(\".\")', 'Path(\"out\")'), made); pictures = torch.rand(5, 3, 32, 32)\n"
        "expected = WholeEncoder(load_encoder(run, torch.device('cpu'))).eval()(pictures)\n"
        "found = made['encode'](pictures)\n"
        "files = sorted(path.name for path in Path('out').iterdir())\n"
        "print(list(found.shape), bool((found - expected).abs().max() < 1e-5), files)",
        "[5, 8] True ['README.md', 'encoder.json', 'encoder.pt2']",
    ),
    "A text tower": (
        "from core.config import Choice; from core import parts; from trainer.models.texts import TEXTS\n"
        "from trainer.models.texts.rebuild import rebuild_text\n"
        "choice = Choice('word_vectors', {'tokens': 'tokens.minilm', 'width': '32'})\n"
        "tower = parts.build(TEXTS, choice, 'text tower').build(8); again = rebuild_text(tower.describe())\n"
        "again.load_state_dict(tower.state_dict()); texts = ['a dog', 'a dog in the snow']\n"
        "a, b = (x.embed_texts(texts, 'cpu', batch) for x, batch in ((tower, 2), (again, 1)))\n"
        "print(a.shape, abs(a - b).max() < 1e-6, {k: len(v) for k, v in tower.parameter_groups().items()})",
        "(2, 8) True {'text_tower': 1, 'text_head': 2}",
    ),
    "A tower": (
        "import torch; from trainer.models.build import build_encoder, rebuild_encoder\n"
        "from trainer.models.config import ModelConfig; from trainer.objectives.infonce import InfoNCE\n"
        "model = build_encoder(ModelConfig(tower='patches:16', freeze='0'), InfoNCE(), 8, 32)\n"
        "again = rebuild_encoder(model.describe()); again.load_state_dict(model.state_dict())\n"
        "try: build_encoder(ModelConfig(tower='patches:16'), InfoNCE(), 8, 40)\n"
        "except ValueError as error: said = str(error)[-27:]\n"
        "features = again.image_features(torch.ones(2, 3, 32, 32))\n"
        "print(model.image_encoder.tower_dim, len(model.parameter_groups()['tower']), features.shape[1], said)",
        "64 0 8 Set image_size to 32 or 48.",
    ),
    "An objective": (
        f"import sys; sys.path.append({str(ROOT / 'tests')!r})\n"
        "from core import parts; from core.config import Choice; from trainer.objectives import OBJECTIVES\n"
        "objective = parts.build(OBJECTIVES, Choice('hinge', {'margin': 0.5}), 'objective')\n"
        "assert 'torch' not in sys.modules\n"
        "from tiny_model import TinyModel; from trainer.step.proof import ProofInputs, prove_gradients\n"
        "inputs = ProofInputs((3, 4, 4), given_text=6)\n"
        "ratios = prove_gradients(TinyModel(objective), objective, {}, inputs, accumulate=3)\n"
        "print({name: round(ratio, 3) for name, ratio in ratios.items()})",
        "{'tower': 1.0, 'head': 1.0}",
    ),
}


@dataclass(frozen=True)
class Recipe:
    """What a section of the page tells to do."""

    new_file: str
    code: str
    table_file: str
    lines: list[str]  # to be added; the last one into the table, before it what is imported


def section(heading: str) -> Recipe:
    page = (ROOT / "docs/extending.md").read_text()
    text = page.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    blocks = dict(reversed(_BLOCK.findall(text)))
    new_file, code = blocks["python"].split("\n", 1)
    table, *changes = blocks["diff"].splitlines()
    added = [line[1:] for line in changes if line.startswith("+")]
    return Recipe(new_file.removeprefix("# ").strip(), code, table.removeprefix(" # ").strip(), added)


@pytest.mark.parametrize("heading", TRIALS)
def test_a_part_is_one_file_and_one_line(tmp_path: Path, heading: str) -> None:
    told = section(heading)
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        for path in (ROOT / package).rglob("*.py"):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text())
    assert not (tmp_path / told.new_file).exists()
    (tmp_path / told.new_file).write_text(told.code)
    table = tmp_path / told.table_file
    *imports, entry = told.lines
    assert len(imports) <= 1 and entry.startswith("    ")
    table_opens = r"(^[A-Z_]+(?:: [^\n]*)? = \{(?:  #[^\n]*)?\n)"
    head, opening, rest = re.split(table_opens, table.read_text(), maxsplit=1, flags=re.MULTILINE)
    table.write_text(head + "".join(f"{line}\n" for line in imports) + opening + entry + "\n" + rest)
    program, expected = TRIALS[heading]
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == expected, done.stderr
