"""The flickr8k reader: both caption files, its image lists, and the entry that is known to be broken."""

from pathlib import Path

import pytest

from core.errors import DataError
from shard_builder.readers.flickr8k import read_flickr8k

KAGGLE = """image,caption
b.jpg,"A dog , wet , runs ."
b.jpg,"He says ""sit"" ."
a.jpg,A child plays .
"""
TOKEN = 'b.jpg#1\tHe says "sit" .\nb.jpg#0\tA dog , wet , runs .\na.jpg#0\tA child plays .\n'
EXPECTED = [("a.jpg", ("A child plays .",)), ("b.jpg", ("A dog , wet , runs .", 'He says "sit" .'))]


def write(folder: Path, captions: str, photos: tuple[str, ...] = ("a.jpg", "b.jpg")) -> dict[str, str]:
    for name in photos:
        (folder / name).write_bytes(b"")
    (folder / "captions.txt").write_bytes(captions.encode())
    return {"images": str(folder), "captions": str(folder / "captions.txt")}


@pytest.mark.parametrize(
    "captions", [KAGGLE, TOKEN, KAGGLE.replace("\n", "\r\n"), "\ufeff" + TOKEN.replace("\n", "\r\n")]
)
def test_both_caption_files_are_recognised_by_what_they_hold(tmp_path: Path, captions: str) -> None:
    result = read_flickr8k("train", **write(tmp_path, captions))
    assert [(record.image_id, record.captions) for record in result.records] == EXPECTED
    assert result.skipped == ()


def test_the_lines_of_other_images_may_come_in_any_order(tmp_path: Path) -> None:
    expected = read_flickr8k("train", **write(tmp_path, TOKEN))
    assert read_flickr8k("train", **write(tmp_path, "\n".join(reversed(TOKEN.splitlines())))) == expected


def test_the_broken_entry_of_flickr8k_is_a_skip(tmp_path: Path) -> None:
    broken = "2258277193_586949ec62.jpg.1"
    result = read_flickr8k("train", **write(tmp_path, TOKEN + f"{broken}#0\ta man\n{broken}#1\ta dog\n"))
    assert len(result.records) == 2
    assert [(skip.image_id, skip.reason) for skip in result.skipped] == [(broken, "missing_image")]
    assert result.num_inputs == 3


def test_a_name_list_chooses_and_its_gaps_are_reported(tmp_path: Path) -> None:
    options = write(tmp_path, KAGGLE + "c.jpg,no photo\nd.jpg, \n", photos=("a.jpg", "b.jpg", "d.jpg"))
    names = tmp_path / "names.txt"
    names.write_text("d.jpg\nc.jpg\n\nb.jpg\n")
    result = read_flickr8k("val", **options, names=str(names))
    assert [record.image_id for record in result.records] == ["b.jpg"]
    assert [(s.image_id, s.reason) for s in result.skipped] == [("c.jpg", "missing_image"), ("d.jpg", "no_captions")]


def test_listed_names_without_captions_are_counted_in_a_sentence(tmp_path: Path) -> None:
    options = write(tmp_path, KAGGLE)
    (tmp_path / "names.txt").write_text("b.jpg\n4\n3\n1\n2\n")
    with pytest.raises(
        DataError, match=r"4 of its 5 names have no captions in .* \(1, 2, 3, \.\.\.\).* such as a\.jpg"
    ):
        read_flickr8k("val", **options, names=str(tmp_path / "names.txt"))


# The original lists, and a split of all photos by 70, 15 and 15 %.
@pytest.mark.parametrize("sizes", [(6000, 1000, 1000), (5663, 1213, 1215)])
def test_lists_of_ones_own_split_the_whole_data_set(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    photos = [f"{number:010d}_{number % 97:02x}.jpg" for number in range(8091)]
    lines = [f'{name},"Photo {name}, seen {k} times ."' for name in photos for k in range(5)]
    options = write(tmp_path, "\r\n".join(["image,caption", *lines]), photos=tuple(photos))
    seen: set[str] = set()
    for split, size in zip(("train", "val", "test"), sizes, strict=True):
        names = photos[len(seen) : len(seen) + size]
        (tmp_path / f"{split}.txt").write_bytes(" \r\n".join([*reversed(names), "", "  "]).encode())
        result = read_flickr8k(split, **options, names=str(tmp_path / f"{split}.txt"))
        assert [record.image_id for record in result.records] == names and not result.skipped
        assert sum(len(record.captions) for record in result.records) == 5 * size
        seen.update(names)
    assert len(seen) == sum(sizes)


def test_the_real_sample_is_read_whole(shared_data: Path) -> None:
    folder = shared_data / "flickr8k"
    ids = {}
    for split, num_images in (("train", 1200), ("val", 300)):
        result = read_flickr8k(
            split,
            images=str(folder / "Images"),
            captions=str(folder / "captions.txt"),
            names=str(folder / f"{split}.txt"),
        )
        assert (len(result.records), len(result.skipped)) == (num_images, 0)
        assert {len(record.captions) for record in result.records} == {5}
        ids[split] = {record.image_id for record in result.records}
    assert not ids["train"] & ids["val"]
    everything = read_flickr8k("all", images=str(folder / "Images"), captions=str(folder / "captions.txt"))
    assert {record.image_id for record in everything.records} == ids["train"] | ids["val"]


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ("", "begins with neither Kaggle's header"),
        ("name;text\na.jpg;hello\n", "begins with neither Kaggle's header"),
        ("image,caption\n", "holds no captions"),
        ("image,caption\na.jpg,fine\na.jpg\n", r"captions\.txt:3: 'a\.jpg' is not 'image,caption'"),
        ('image,caption\na.jpg,"never closed\n', r"captions\.txt:\d: .*Mend the quotes"),
        ("a.jpg#0\tfine\nb.jpg no number\n", r"captions\.txt:2: 'b\.jpg no number' is not 'name\.jpg#0<tab>caption'"),
    ],
)
def test_a_wrong_captions_file_is_named_with_its_line(tmp_path: Path, captions: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_flickr8k("train", **write(tmp_path, captions))


def test_an_empty_or_missing_name_list_is_named(tmp_path: Path) -> None:
    options = write(tmp_path, KAGGLE)
    (tmp_path / "names.txt").write_text("\n")
    with pytest.raises(DataError, match=r"lists no images\. Set source\.names"):
        read_flickr8k("train", **options, names=str(tmp_path / "names.txt"))
    with pytest.raises(DataError, match=r"other\.txt: no such file\. Set source\.names"):
        read_flickr8k("train", **options, names=str(tmp_path / "other.txt"))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    options = write(tmp_path, KAGGLE)
    (tmp_path / "captions.txt").write_bytes(b"\xff\xd8\xff\xe0 a photo")
    with pytest.raises(DataError, match=r"is not UTF-8 text \(byte 0\)"):
        read_flickr8k("train", **options)
