"""What a build notes in its folder: an unfinished one goes on from it, a finished one is known by it.

`OUT/.build/recipe.json` says what is being built, `OUT/.build/NAME.json` what became of each finished shard. Both go
when the manifest is there. `OUT/build.json` stays: the recipe, and the hashes of the files that the manifest omits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from core.config import config_diff
from core.errors import ManifestError, StorageError
from core.fields import fill
from core.manifest import MANIFEST_NAME, Manifest, ShardEntry, load_manifest
from core.storage import (
    exists,
    is_local,
    join,
    list_names,
    local,
    publish_bytes,
    read_bytes,
    remove,
    sweep_partials,
)
from shard_builder.fingerprint import fingerprint_of, fingerprints_of, named_in_full
from shard_builder.layout import ShardPlan
from shard_builder.records import Skip
from shard_builder.whole import has_hash, looks_whole
from shard_builder.writer import ShardResult

BUILD_NAME = "build.json"
STATE_NAME = ".build"


def is_begun(out: str, recipe: Mapping[str, Any]) -> bool:
    """Whether a set of this very recipe, or an unfinished build of it, lies in the folder."""
    if exists(join(out, MANIFEST_NAME)):
        return load_manifest(out).build_fingerprint in fingerprints_of(recipe)
    begun = _read_json(join(out, STATE_NAME, "recipe.json"))
    return bool(begun) and named_in_full(begun) == recipe


def open_state(out: str, recipe: Mapping[str, Any]) -> Manifest | None:
    """The finished set of this very recipe, though it may have lost shards since; None when there is work to do.

    An unfinished build whose pictures were mended (other file sizes, all else equal) goes on: `finished_results` keeps
    the shards whose own inputs are as they were. One that has written no shard is begun anew.

    Raises:
        ManifestError: another recipe's set or unfinished build lies in the folder.
    """
    if is_local(out):
        sweep_partials(local(out))
    if exists(join(out, MANIFEST_NAME)):
        manifest = load_manifest(out)
        if not is_begun(out, recipe):
            raise _other_recipe(out, "holds a shard set", _read_json(join(out, BUILD_NAME)).get("recipe"), recipe)
        close_state(out)
        return manifest
    begun = _read_json(join(out, STATE_NAME, "recipe.json"))
    if not begun:
        _expect_no_shards(out)
        publish_bytes(_json_bytes(recipe), join(out, STATE_NAME, "recipe.json"))
    elif not is_begun(out, recipe):
        if _has_shards(out) and not _differ_in_contents_alone(begun, recipe):
            raise _other_recipe(out, "holds an unfinished build", begun, recipe)
        _forget_notes_without_inputs(out)
        publish_bytes(_json_bytes(recipe), join(out, STATE_NAME, "recipe.json"))
    return None


def save_result(out: str, name: str, result: ShardResult) -> None:
    """Note that a shard is finished."""
    publish_bytes(_json_bytes(asdict(result)), _result_path(out, name))


def finished_results(out: str, plans: list[ShardPlan], inputs: Mapping[str, str]) -> dict[str, ShardResult]:
    """Shard name -> result, for each shard whose files are there and are byte for byte those that were written.

    Args:
        inputs: shard name -> hash of its inputs as they are now; a shard of others is not kept.
    """
    found = {plan.name: _read_json(_result_path(out, plan.name)) for plan in plans}
    results = {name: _result_of(body) for name, body in found.items()}
    return {
        name: result
        for name, result in results.items()
        if result and result.inputs in ("", inputs[name]) and _is_intact(out, result)
    }


def save_build(out: str, recipe: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Publish `build.json`. `files`: name -> sha256 of what the manifest does not name."""
    publish_bytes(build_bytes(recipe, files), join(out, BUILD_NAME))


def build_bytes(recipe: Mapping[str, Any], files: Mapping[str, str]) -> bytes:
    """The bytes of `build.json`, with a hash of itself, in the one form that `verify` accepts."""
    return _signed({"recipe": recipe, "files": files})


def load_build(out: str) -> dict[str, Any]:
    """What `build.json` says: `recipe` and `files`.

    Raises:
        ManifestError: it is missing, or not as it was written.
    """
    path = join(out, BUILD_NAME)
    body = _read_json(path)
    if not all(isinstance(body.get(name), dict) for name in ("recipe", "files")):
        raise ManifestError(f"{path}: is missing or cannot be read. Restore it, or make the set again.")
    if read_bytes(path) != _signed({name: value for name, value in body.items() if name != "sha256"}):
        raise ManifestError(f"{path}: its own hash does not fit: it was altered. Restore it, or make the set again.")
    return body


def close_state(out: str) -> None:
    """Remove what was kept for going on; the manifest is there."""
    remove(join(out, STATE_NAME))


def _is_intact(out: str, result: ShardResult) -> bool:
    entry = result.entry
    return entry is None or (looks_whole(out, entry) and has_hash(join(out, entry.name), entry.sha256))


def _shard_files(out: str) -> list[str]:
    return [name for name in (list_names(out) if exists(out) else []) if name.endswith((".tar", ".idx"))]


def _has_shards(out: str) -> bool:
    return bool(_shard_files(out)) or list_names(join(out, STATE_NAME)) != ["recipe.json"]


def _differ_in_contents_alone(begun: Mapping[str, Any], recipe: Mapping[str, Any]) -> bool:
    """Whether two recipes are of the same images as far as these can be counted, and of the same settings."""
    was, now = named_in_full(begun), json.loads(_json_bytes(recipe))
    differences = {line.split(":")[0] for line in config_diff(was, now)}
    return differences <= {"inputs.image_bytes", "inputs.sha256"}


def _forget_notes_without_inputs(out: str) -> None:
    """Notes of an older version do not say what their shards were made of: these are written again."""
    for name in list_names(join(out, STATE_NAME)):
        path = join(out, STATE_NAME, name)
        if name != "recipe.json" and not _read_json(path).get("inputs"):
            remove(path)


def _expect_no_shards(out: str) -> None:
    strangers = _shard_files(out)
    if strangers:
        raise StorageError(
            f"{out}: holds {len(strangers)} shard files ({strangers[0]}, ...) but neither a manifest nor an unfinished "
            "build. Choose another `out`, or delete them."
        )


def _other_recipe(out: str, what: str, old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> ManifestError:
    differences = (
        config_diff(named_in_full(old), json.loads(_json_bytes(new)))
        if old
        else ["(its build.json is missing or damaged)"]
    )
    listed = (
        "; ".join(line for line in differences if not line.startswith("inputs.sha256")) or "the inputs' ids or texts"
    )
    return ManifestError(
        f"{out}: {what} of other inputs or settings: {listed}. Choose another `out`, or delete that folder."
    )


def _result_path(out: str, name: str) -> str:
    return join(out, STATE_NAME, f"{name}.json")


def _result_of(body: dict[str, Any]) -> ShardResult | None:
    """The result that a note speaks of; None where another version left something out: that shard is written again."""
    try:
        values = dict(body)
        if body.get("entry"):
            values["entry"] = fill(ShardEntry, body["entry"], "", ManifestError, "")
        if "skipped" in body:
            values["skipped"] = tuple(fill(Skip, skip, "", ManifestError, "") for skip in body["skipped"])
        return fill(ShardResult, values, "", ManifestError, "")
    except ManifestError:
        return None


def _read_json(url: str) -> dict[str, Any]:
    if not exists(url):
        return {}
    try:
        return dict(json.loads(read_bytes(url)))
    except (ValueError, TypeError):
        return {}  # a damaged note is no note: the work it speaks of is done again


def _signed(body: Mapping[str, Any]) -> bytes:
    return _json_bytes({**body, "sha256": fingerprint_of(body)})


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
