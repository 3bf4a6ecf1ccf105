"""Captions from a file in place of a set's own: equal captions give equal figures, a mistake gives a sentence."""

import json

import numpy as np
import pytest
import torch
from pixel_model import PixelEncoder, normalize, pixels_of
from shard_sets import make_shard_set

from core.errors import ConfigError, DataError
from core.shard_set import ShardSet
from eval.captions_file import read_captions
from eval.features import extract_pictures
from eval.own_captions import with_captions
from eval.ranks import retrieval_ranks
from trainer.data.loader import EvalLoader


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def pictures_in(shard_set):
    loader = EvalLoader(shard_set, batch_size=50)
    return extract_pictures(PixelEncoder(), normalize, shard_set, loader, device=torch.device("cpu"))


@pytest.fixture
def shard_set(tmp_path):
    return ShardSet.open(make_shard_set(tmp_path / "val", 9, num_captions=[1 + n % 3 for n in range(9)]))


def stored(shard_set):
    """An encoder that knows what the set stores."""
    known = {
        caption: row
        for sample in range(len(shard_set))
        for caption, row in zip(shard_set.captions(sample), shard_set.embeddings(sample), strict=True)
    }
    return lambda texts: np.stack([known[text] for text in texts])


@pytest.mark.parametrize("by", ["image_id", "key"])
def test_a_set_s_own_captions_in_a_file_give_its_own_figures(tmp_path, shard_set, by):
    names = [shard_set.key(s) if by == "key" else shard_set.info(s)["image_id"] for s in range(9)]
    lines = [{by: names[s], "captions": shard_set.captions(s)} for s in (4, 1, 0, 8, 2, 3, 7, 6, 5)]
    captions = read_captions(written(tmp_path / "c.jsonl", lines), shard_set)
    found = with_captions(pictures_in(shard_set), shard_set, captions, stored(shard_set), 1.0)
    expected = pixels_of(shard_set.urls[0])
    ours, theirs = retrieval_ranks(found.features), retrieval_ranks(expected.features)
    assert ours.text_to_image.tolist() == theirs.text_to_image.tolist()
    assert ours.image_to_text.tolist() == theirs.image_to_text.tolist()
    assert found.captions.tolist() == expected.captions.tolist()


def test_pictures_without_a_line_are_left_out_and_lines_of_one_picture_add_up(tmp_path, shard_set):
    lines = [
        {"image_id": "5", "captions": ["caption 0 of image 1"]},
        {"image_id": "2", "caption": "caption 0 of image 2"},
        {"image_id": 5, "captions": ["caption 0 of image 3", "caption 0 of image 4"]},
    ]
    captions = read_captions(written(tmp_path / "c.jsonl", lines), shard_set)
    assert {sample: len(own) for sample, own in captions.items()} == {2: 1, 5: 3}
    found = with_captions(pictures_in(shard_set), shard_set, captions, stored(shard_set), 1.0)
    assert found.samples.tolist() == [2, 5] and found.features.image_of_text.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"image_id": "99", "captions": ["x"]}, r"line 2: no sample of .* has image_id '99'"),
        ({"image_id": "1", "captions": []}, "line 2: has no captions"),
        ({"image_id": "1", "captions": [" "]}, "line 2: has no captions"),
        ({"captions": ["x"]}, "line 2: is no JSON object with key or image_id"),
        (["x"], "line 2: is no JSON object"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, shard_set, line, sentence):
    path = written(tmp_path / "c.jsonl", [{"image_id": "1", "captions": ["x"]}, line])
    with pytest.raises(DataError, match=sentence):
        read_captions(path, shard_set)


def test_a_missing_or_empty_file_is_named(tmp_path, shard_set):
    with pytest.raises(ConfigError, match="is missing"):
        read_captions(tmp_path / "none.jsonl", shard_set)
    with pytest.raises(DataError, match="is empty"):
        read_captions(written(tmp_path / "c.jsonl", []), shard_set)


def test_only_a_newline_ends_a_line(tmp_path, shard_set):
    path = tmp_path / "c.jsonl"
    line = json.dumps({"image_id": "1", "captions": ["one\u2028two\x85three", "four"]}, ensure_ascii=False)
    path.write_text(f"{line}\r\n\n{line}", encoding="utf-8", newline="")
    assert read_captions(path, shard_set) == {1: ["one two three", "four"] * 2}


def test_a_name_of_two_images_is_refused_and_of_one_image_in_two_sets_is_not(tmp_path, shard_set):
    same = make_shard_set(tmp_path / "same", 4)  # the first images of the other
    both = ShardSet.open([shard_set.urls[0], same])
    path = written(tmp_path / "c.jsonl", [{"image_id": "1", "caption": "x"}])
    assert read_captions(path, both) == {1: ["x"]}
    ids = both.image_ids
    both.image_ids = lambda samples: ids(samples) + (samples >= 9)  # as if they showed others
    for by, name in (("image_id", "1"), ("key", both.key(1))):
        path = written(tmp_path / "c.jsonl", [{by: name, "caption": "x"}])
        with pytest.raises(DataError, match=rf"line 1: different images have {by} '{name}': .*same.* Name pictures by"):
            read_captions(path, both)
