"""The plan: every record in one place, the same place whatever the order of arrival."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from shard_builder.layout import key_of, plan_shards, without_repeats
from shard_builder.records import Record


def records(count: int) -> list[Record]:
    return [Record(f"{n}.v2.jpg", "coco", f"/photos/{n}.jpg", (f"caption {n}",)) for n in range(count)]


@settings(deadline=None, max_examples=40)
@given(count=st.integers(0, 60), per_shard=st.integers(1, 25), seed=st.integers(0, 5))
def test_every_record_stands_in_one_shard(count: int, per_shard: int, seed: int) -> None:
    plans = plan_shards(records(count), "train", per_shard, seed)
    assert sorted(r.image_id for p in plans for r in p.records) == sorted(r.image_id for r in records(count))
    assert [len(p.records) for p in plans[:-1]] == [per_shard] * (len(plans) - 1)
    assert [p.first_key for p in plans] == [per_shard * n for n in range(len(plans))]
    assert [p.name for p in plans] == [f"train-{n:05d}.tar" for n in range(len(plans))]


@settings(deadline=None, max_examples=20)
@given(shuffle=st.randoms(use_true_random=False))
def test_the_order_of_arrival_is_forgotten(shuffle: random.Random) -> None:
    arrived = records(30)
    shuffle.shuffle(arrived)
    expected = plan_shards(without_repeats(records(30))[0], "train", 7, seed=3)
    assert plan_shards(without_repeats(arrived)[0], "train", 7, seed=3) == expected


def test_another_seed_gives_another_order() -> None:
    assert plan_shards(records(30), "train", 30, 0) != plan_shards(records(30), "train", 30, 1)


def test_a_second_record_of_an_id_is_left_out_whichever_came_first() -> None:
    twice = [replace(records(3)[1], image="/photos/z.jpg"), *records(3)]
    kept, repeats = without_repeats(twice)
    assert kept == records(3)
    assert [(s.image_id, s.reason) for s in repeats] == [("1.v2.jpg", "repeated_id")]
    assert "/photos/1.jpg" in repeats[0].detail
    assert without_repeats(twice[::-1]) == (kept, repeats)


def test_keys_hold_no_dot_and_sort_like_numbers() -> None:
    keys = [key_of(n) for n in (0, 9, 10, 123456)]
    assert keys == sorted(keys)
    assert keys[-1] == "000123456"


def test_an_error_can_name_the_image_at_work() -> None:
    plan = plan_shards(records(3), "train", 3, 0)[0]
    assert plan.describe(1).startswith("image 2 of 3, '")
    assert plan.describe(3) == "after its last image"
