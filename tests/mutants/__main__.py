"""Change the product in one place at a time and see which tests notice.

    PYTHONPATH=tests .venv/bin/python -m mutants                 all rooms: half an hour
    PYTHONPATH=tests .venv/bin/python -m mutants samplers ledger
    PYTHONPATH=tests .venv/bin/python -m mutants --seed 1        another draw

What was found is kept in runs/mutants and not tried again; survivors are, after a test was added.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mutants.places import Mutant, draw
from mutants.rooms import ROOMS
from mutants.trial import copied, load_libraries, run_tests, try_mutant
from mutants.unchanged import UNCHANGED

ROOT = Path(__file__).resolve().parents[2]
MOST_S = 20  # of processor time that a room's tests may take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", help=f"{', '.join(ROOMS)}; all where none is named")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--count", type=int, help="mutants of each room, in place of the table's number")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants")
    given = parser.parse_args()
    if unknown := set(given.rooms) - set(ROOMS):
        parser.error(f"no room {', '.join(sorted(unknown))}: there are {', '.join(ROOMS)}")
    load_libraries()
    results = {name: _try_room(name, given.seed, given.count, given.out) for name in given.rooms or ROOMS}
    table = report(results)
    path = given.out / f"report-{given.seed}.md"
    path.write_text(table)
    print(table.split("\n\n")[0], f"\nall mutants: {path}", sep="\n")


def _try_room(name: str, seed: str, count: int | None, out: Path) -> list[dict[str, Any]]:
    room, notes = ROOMS[name], out / f"{name}.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    found = {result["key"]: result for result in known if result["found_by"]}
    mutants = draw(ROOT, room.files, count or room.mutants, f"{seed} {name}")
    results = []
    with copied(ROOT) as copy:
        right = run_tests(copy, room, timeout_s=300)
        print(
            f"{name}: {len(mutants)} mutants, tests take {right.cpu_s:.0f} s ({right.wall_s:.0f} s passed)", flush=True
        )
        if right.found_by:
            raise SystemExit(f"{right.found_by} fails without any mutant.\n{(copy / 'output.txt').read_text()[-3000:]}")
        if right.cpu_s > MOST_S:
            print(f"{name}: its tests take more than {MOST_S} s: leave slow ones out in tests/mutants/rooms.py")
        for number, mutant in enumerate(mutants, 1):
            result = found.get(_key(mutant)) or _tried(copy, name, mutant, 3 * right.wall_s + 20, notes)
            results.append(result)
            print(f"{number:3} {_line(result)}", flush=True)
    return results


def _tried(copy: Path, name: str, mutant: Mutant, timeout_s: float, notes: Path) -> dict[str, Any]:
    reason = UNCHANGED.get((mutant.file, mutant.before, mutant.after))
    found_by = None if reason else try_mutant(copy, ROOMS[name], mutant, timeout_s).found_by
    result = {"room": name, "key": _key(mutant), **asdict(mutant), "found_by": found_by, "unchanged": reason}
    del result["source"]
    with notes.open("a") as file:
        print(json.dumps(result), file=file)
    return result


def _key(mutant: Mutant) -> str:
    return hashlib.sha256(f"{mutant.file}\n{mutant.source}".encode()).hexdigest()[:16]


def _line(result: dict[str, Any]) -> str:
    verdict = result["found_by"] or ("unchanged" if result["unchanged"] else "SURVIVED")
    return (
        f"{verdict.split('::')[-1]:60.60} {result['file']}:{result['line']}: {result['before']}  ->  {result['after']}"
    )


def report(results: dict[str, list[dict[str, Any]]]) -> str:
    """Two tables: figures of each room, and all mutants."""
    rows = ["| room | made | change behaviour | found | % |", "| --- | ---: | ---: | ---: | ---: |"]
    every = [result for room in results.values() for result in room]
    for name, room in [*results.items(), ("all", every)]:
        kinds = Counter("found" if r["found_by"] else "unchanged" if r["unchanged"] else "survived" for r in room)
        changing = kinds["found"] + kinds["survived"]
        share = 100 * kinds["found"] / max(changing, 1)
        rows.append(f"| {name} | {len(room)} | {changing} | {kinds['found']} | {share:.1f} |")
    rows += ["", "| room | place | before | after | found by |", "| --- | --- | --- | --- | --- |"]
    for r in every:
        before, after = (f"`{r[side].replace('|', chr(92) + '|')}`" for side in ("before", "after"))
        verdict = (r["found_by"] or "").split("::")[-1] or (
            f"unchanged: {r['unchanged']}" if r["unchanged"] else "SURVIVED"
        )
        rows.append(f"| {r['room']} | {r['file']}:{r['line']} | {before} | {after} | {verdict} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
