"""The command line given many mistakes in one process that cannot load torch, and what an answer to one must be."""

from __future__ import annotations

from typing import Any

# Each input in this one process, as `main` gets it: what it said, how it left, how long it took.
PROGRAM = """
import contextlib, io, json, sys, time
from launch import cli
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "accelerate", "matplotlib"):
            raise AssertionError(f"{name} was to be loaded")
sys.meta_path.insert(0, NoTorch())  # nothing starts, whatever is overlooked
outcomes = []
for words in json.load(open(sys.argv[1])):
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv, began = ["shardclip", *words], time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as leaving:
            code = leaving.code or 0
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - began
    outcomes.append(dict(words=words, code=code, out=out.getvalue(), err=err.getvalue(), s=seconds))
print(json.dumps(outcomes))
"""


def faults(outcome: dict[str, Any]) -> list[str]:
    """What is wrong with how a mistake was answered."""
    said = outcome["err"].strip()
    found = []
    if outcome["code"] not in (1, 2):
        found.append(f"left with {outcome['code']}")
    if "Traceback" in outcome["out"] + said:
        found.append("a traceback")
    if outcome["code"] == 2 and (not said.startswith("shardclip: ") or "\n" in said):
        found.append("not one sentence")
    if outcome["code"] == 1 and not outcome["out"].strip():
        found.append("said nothing")
    return found
