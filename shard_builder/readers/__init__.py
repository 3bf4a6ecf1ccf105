"""The readers by name: each lists the captioned images of one split, decodes nothing, and leaves nothing out unsaid."""

from collections.abc import Callable

from shard_builder.readers.coco import read_coco
from shard_builder.readers.flickr8k import read_flickr8k
from shard_builder.readers.image_folder import read_image_folder
from shard_builder.readers.imagenet import read_imagenet
from shard_builder.readers.jsonl import read_jsonl
from shard_builder.readers.scenes import read_scenes
from shard_builder.records import ReadResult

READERS: dict[str, Callable[..., ReadResult]] = {
    "coco": read_coco,
    "flickr8k": read_flickr8k,
    "jsonl": read_jsonl,
    "image_folder": read_image_folder,
    "imagenet": read_imagenet,
    "scenes": read_scenes,
}
