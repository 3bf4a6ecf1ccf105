"""Reads COCO captions: the official captions_*.json of 2014 and 2017, or Karpathy's split of them.

https://cocodataset.org/#format-data; Karpathy and Fei-Fei 2015 (dataset_coco.json).
"""

import io
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from pycocotools.coco import COCO

from core.errors import DataError, did_you_mean
from core.storage import exists, join
from shard_builder.readers.files import present_files, read_json, require_folder
from shard_builder.records import ReadResult, Record, Skip, clean_captions

SOURCE = "coco"
KARPATHY_SPLITS = ("train", "restval", "val", "test")


def read_coco(
    split: str,
    *,
    images: str,
    captions: str | None = None,
    karpathy: str | None = None,
    restval: bool = True,
) -> ReadResult:
    """The images of a captions file, ordered by image id; captions ordered by annotation id.

    Args:
        split: chooses the images of a `karpathy` file; a captions file is one split as a whole.
        images: folder of the photos; with `karpathy`, the folder that holds train2014 and val2014.
        captions: captions_train2014.json and the like.
        karpathy: dataset_coco.json; it holds the captions itself.
        restval: whether Karpathy's `train` takes in the 30,504 images he calls `restval`, as is usual.
    """
    if (captions is None) == (karpathy is None):
        raise DataError(
            "source coco: give either captions (captions_*.json) or karpathy (dataset_coco.json, which holds "
            "captions itself). Set the other one to null."
        )
    require_folder(images, "images")
    if karpathy is not None:
        listing = _karpathy_images(karpathy, split, images, restval)
        return _result(listing, unknown=())
    assert captions is not None
    coco = _load_captions(captions)
    listing = [
        _Listed(image["id"], join(images, image["file_name"]), _captions_of(coco.imgToAnns.get(image_id, ())))
        for image_id, image in coco.imgs.items()
    ]
    unknown = [
        Skip(str(image_id), SOURCE, "unknown_image", f"{captions}: {_spoken_ids(annotations)} but no image has this id")
        for image_id, annotations in _by_id(coco.imgToAnns)
        if image_id not in coco.imgs
    ]
    return _result(listing, unknown)


@dataclass(frozen=True)
class _Listed:
    image_id: Any  # a number in COCO's own files; other makers write text
    image: str
    captions: tuple[str, ...]


def _result(listing: Iterable[_Listed], unknown: Iterable[Skip]) -> ReadResult:
    ordered = sorted(listing, key=lambda listed: _id_order(listed.image_id))
    present = present_files(listed.image for listed in ordered)
    records, skipped = [], []
    for listed in ordered:
        image_id = str(listed.image_id)
        if listed.image not in present:
            skipped.append(Skip(image_id, SOURCE, "missing_image", listed.image))
        elif not listed.captions:
            skipped.append(Skip(image_id, SOURCE, "no_captions", listed.image))
        else:
            records.append(Record(image_id, SOURCE, listed.image, listed.captions))
    return ReadResult(tuple(records), (*skipped, *unknown))


def _load_captions(url: str) -> COCO:
    dataset = read_json(url, "captions")
    _check_captions_schema(url, dataset)
    coco = COCO()  # not COCO(url): it reads local files only, in the machine's own text encoding
    coco.dataset = dataset
    with redirect_stdout(io.StringIO()):  # it reports its progress with print
        coco.createIndex()
    return coco


def _check_captions_schema(url: str, dataset: object) -> None:
    remedy = "Set source.captions to COCO's captions_*.json."
    if not isinstance(dataset, Mapping) or not _is_list_of_mappings(dataset.get("images")):
        raise DataError(f"{url}: holds no list 'images', so it is not a COCO file. {remedy}")
    if not dataset["images"]:
        raise DataError(f"{url}: lists no images. {remedy}")
    if not _is_list_of_mappings(dataset.get("annotations")):
        raise DataError(f"{url}: holds no list 'annotations', so it has no captions. {remedy}")
    file_names: dict[object, object] = {}
    for image in dataset["images"]:
        if "id" not in image or not isinstance(image.get("file_name"), str):
            raise DataError(f"{url}: an image has no 'id' or no 'file_name' ({_shown(image)}). {remedy}")
        if file_names.setdefault(image["id"], image["file_name"]) != image["file_name"]:
            raise DataError(f"{url}: two images have the id {image['id']}. Give each image its own id.")
    for annotation in dataset["annotations"]:
        if "segmentation" in annotation or "category_id" in annotation:
            raise DataError(f"{url}: holds instances, not captions. {remedy}")
        if not isinstance(annotation.get("caption"), str) or not {"id", "image_id"} <= annotation.keys():
            raise DataError(
                f"{url}: an annotation lacks 'caption', 'id' or 'image_id' ({_shown(annotation)}). {remedy}"
            )


def _karpathy_images(url: str, split: str, images: str, restval: bool) -> list[_Listed]:
    if split not in KARPATHY_SPLITS:
        raise DataError(f"{url}: has no split '{split}'.{did_you_mean(split, KARPATHY_SPLITS)}")
    dataset = read_json(url, "karpathy")
    remedy = "Set source.karpathy to Karpathy's dataset_coco.json."
    if not isinstance(dataset, Mapping) or not _is_list_of_mappings(dataset.get("images")):
        raise DataError(f"{url}: holds no list 'images'. {remedy}")
    wanted = {"train", "restval"} if split == "train" and restval else {split}
    folders: dict[str, str] = {}
    listing = []
    for image in dataset["images"]:
        try:
            if image["split"] not in wanted:
                continue
            sentences = sorted(image["sentences"], key=lambda sentence: sentence.get("sentid", 0))
            captions = clean_captions(sentence["raw"] for sentence in sentences)
            folder = folders.setdefault(image["filepath"], _photo_folder(images, image["filepath"]))
            listing.append(_Listed(image["cocoid"], join(folder, image["filename"]), captions))
        except (KeyError, TypeError, AttributeError):
            raise DataError(f"{url}: an image is not as in Karpathy's file ({_shown(image)}). {remedy}") from None
    if not listing:
        raise DataError(f"{url}: lists no images of split '{split}'. {remedy}")
    return listing


def _photo_folder(images: str, filepath: str) -> str:
    """Photos lie in images/train2014 and images/val2014, or all in one folder: their names differ."""
    inside = join(images, filepath)
    return inside if exists(inside) else images


def _captions_of(annotations: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    ordered = sorted(annotations, key=lambda annotation: (_id_order(annotation["id"]), annotation["caption"]))
    return clean_captions(annotation["caption"] for annotation in ordered)


def _by_id(images: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    return sorted(images.items(), key=lambda item: _id_order(item[0]))


def _id_order(value: Any) -> tuple[bool, Any]:
    return (not isinstance(value, int), value if isinstance(value, int) else str(value))


def _spoken_ids(annotations: Iterable[Mapping[str, Any]]) -> str:
    ids = sorted((annotation["id"] for annotation in annotations), key=_id_order)
    return f"captions {', '.join(map(str, ids))}"


def _is_list_of_mappings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value)


def _shown(entry: object) -> str:
    text = repr(entry)
    return text if len(text) <= 80 else text[:77] + "..."
