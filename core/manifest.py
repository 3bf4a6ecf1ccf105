"""The manifest of a shard set: the contract between the builder and every reader. Written last."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from core.errors import ManifestError, StorageError
from core.fields import fill
from core.storage import exists, is_local, join, local, publish_bytes, read_bytes

MANIFEST_NAME = "manifest.json"
GIVEN, OF_CLASSES = "given", "of classes"  # where a set's captions come from: its source, or the names of its classes
FORMAT_VERSION = 1
_BUILD_AGAIN = "Update shardclip, or build the set again."


@dataclass(frozen=True)
class ImageSpec:
    """How images are stored."""

    size: int  # pixels, both sides
    fit: str = "crop"  # crop | squash | pad
    codec: str = "jpeg"  # jpeg | raw (uint8, no decoding) | mixed (adopted: any format and size, fitted when read)
    quality: int = 95  # of jpeg


@dataclass(frozen=True)
class TextEncoderSpec:
    """Which frozen encoder made the caption embeddings."""

    name: str
    revision: str
    embed_dim: int
    weights_sha256: str

    def __str__(self) -> str:
        return f"{self.name} ({self.revision}, {self.embed_dim} wide, weights {self.weights_sha256[:12]})"


@dataclass(frozen=True)
class SidecarEntry:
    """A file beside an adopted shard that holds its embeddings."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardEntry:
    """One tar of the set."""

    name: str
    num_samples: int
    num_captions: int
    bytes: int
    sha256: str
    index_sha256: str
    embeddings: SidecarEntry | None = None  # of sets adopted before columns
    index: str = ""  # the index's file name; "": the tar's with .idx

    @property
    def index_name(self) -> str:
        """The index's file: `train-00000.tar` -> `train-00000.idx`, or the name that a set adopted again gave it."""
        return self.index or index_name(self.name)


@dataclass(frozen=True)
class Manifest:
    """All that readers believe about a shard set."""

    split: str
    num_samples: int
    num_captions: int
    image: ImageSpec
    text_encoder: TextEncoderSpec | None
    classes: tuple[str, ...]
    shards: tuple[ShardEntry, ...]
    num_inputs: int  # num_samples + sum of skipped
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> count
    build_fingerprint: str = ""  # hash of inputs and settings, imaging library included: answers "already built"
    fingerprint: str = ""  # hash of the samples in order (`samples_fingerprint`); "" in sets of before it: computed
    captions: str = ""  # given | of classes; "" in sets of before it was noted
    num_cut_captions: int = 0  # longer than the text encoder takes; cut_captions.jsonl names them
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        assert self.num_samples == sum(s.num_samples for s in self.shards), "shards do not add up"
        assert self.num_inputs == self.num_samples + sum(self.skipped.values()), "skips do not add up"


def index_name(shard: str) -> str:
    """The file name of a new shard's index: `train-00000.tar` -> `train-00000.idx`."""
    return shard.removesuffix(".tar") + ".idx"


def save_manifest(manifest: Manifest, url: str) -> str:
    """Publish the manifest, with a hash of itself, into the set's folder; returns the file's sha256."""
    return publish_bytes(_signed(asdict(manifest)), join(url, MANIFEST_NAME))


def load_manifest(url: str) -> Manifest:
    """The set's manifest, verified against its own hash.

    Raises:
        ManifestError: missing, truncated, altered, or of a newer format.
    """
    path = join(url, MANIFEST_NAME)
    if not exists(path):
        raise ManifestError(f"{url}: no {MANIFEST_NAME}, so no shard set is there. {_instead(url)}")
    try:
        data = read_bytes(path)
        body = json.loads(data)
        del body["manifest_sha256"]
    except StorageError as error:
        raise ManifestError(str(error)) from error
    except (ValueError, KeyError, TypeError):
        raise ManifestError(f"{path}: truncated or no manifest. Restore it, or build the set again.") from None
    if body.get("format_version", 0) > FORMAT_VERSION:
        raise ManifestError(
            f"{path}: format {body['format_version']} is newer than {FORMAT_VERSION}. Update shardclip."
        )
    # Byte for byte: JSON alone would overlook a lost line end, or an escape written otherwise.
    if _signed(body) != data:
        raise ManifestError(f"{path}: its own hash does not fit: it was altered. Restore it, or build the set again.")
    return _manifest_of(body, path)


def mended_by(url: str, manifest: Manifest, of_right_size: bool = False) -> str:
    """The sentence that says how a set gets back what it lost of its shards.

    Args:
        of_right_size: the damage may lie within a tar, where only a build that reads every byte sees it.
    """
    if manifest.image.codec == "mixed":
        return f"Restore it, or take the set as it is now: `shardclip index-shards {url}`."
    keys = f"out={url} check_bytes=true" if of_right_size else f"out={url}"
    return f"`shardclip build` with the recipe of this set ({keys}) writes it again from the sources."


def _instead(url: str) -> str:
    """What to do where no set is, by what is there."""
    if not is_local(url):
        return "Build one with `shardclip build`."
    folder = local(url)
    if not folder.exists():
        return "There is no such folder."
    if not folder.is_dir():
        return f"It is a file: name a folder{f', {folder.parent}' if folder.suffix == '.tar' else ''}."
    if (folder / ".build").exists():
        return "A build was not finished there: the same `shardclip build` goes on with it."
    if any(folder.glob("*.tar")):
        return f"It holds tars: `shardclip index-shards {url}` makes a set of them."
    if inner := sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST_NAME}")):
        return f"Name one of its folders: {', '.join(inner[:5])}."
    return "Build one with `shardclip build`."


def _signed(body: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    return (json.dumps({**body, "manifest_sha256": digest}, indent=1, ensure_ascii=False) + "\n").encode()


def _manifest_of(body: dict[str, Any], path: str) -> Manifest:
    if "build_fingerprint" not in body:  # of before the samples had a hash of their own
        body = {**body, "build_fingerprint": body.get("fingerprint", ""), "fingerprint": ""}
    try:
        parts = {**body, "text_encoder": None, "classes": tuple(body.get("classes", ()))}
        if "shards" in body:
            parts["shards"] = tuple(_entry_of(values, path) for values in body["shards"])
        if "image" in body:
            parts["image"] = fill(ImageSpec, body["image"], path, ManifestError, _BUILD_AGAIN)
        if encoder := body.get("text_encoder"):
            parts["text_encoder"] = fill(TextEncoderSpec, encoder, path, ManifestError, _BUILD_AGAIN)
        return fill(Manifest, parts, path, ManifestError, _BUILD_AGAIN)
    except (TypeError, AttributeError, AssertionError) as error:
        what = f"does not hang together ({error})"
        raise ManifestError(f"{path}: {what}, so it was written by another version. {_BUILD_AGAIN}") from error


def _entry_of(values: dict[str, Any], path: str) -> ShardEntry:
    sidecar = values.get("embeddings")
    if sidecar:
        values = {**values, "embeddings": fill(SidecarEntry, sidecar, path, ManifestError, _BUILD_AGAIN)}
    return fill(ShardEntry, values, path, ManifestError, _BUILD_AGAIN)
