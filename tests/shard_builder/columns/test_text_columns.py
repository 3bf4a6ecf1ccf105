"""Text and tokens: of each caption what the encoder, or its tokenizer, says of it alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from column_sets import add
from fake_encoder import SPEC, FakeEncoder, expected

from core.errors import ConfigError, ManifestError, WeightsError
from core.shard_set import ShardSet
from core.text_encoders import TEXT_ENCODERS
from core.text_encoders.encode import encode_captions
from core.text_encoders.minilm import minilm
from shard_builder.embed import embed_shards


@pytest.mark.parametrize("which", ["built", "adopted"])
def test_a_text_column_is_the_encoder_of_each_caption(request: pytest.FixtureRequest, cache: Path, which: str) -> None:
    folder = request.getfixturevalue(which)
    (head,) = add("text", folder, cache=cache, encoder="fake")
    assert head.name == "text.model" and head.text_encoder == SPEC
    shard_set = ShardSet.open(str(folder), text="text.model")
    assert shard_set.text_encoder == SPEC
    for sample in range(len(shard_set)):
        np.testing.assert_array_equal(shard_set.embeddings(sample), expected(shard_set.captions(sample)))


def test_minilm_joins_a_built_set_as_encode_captions_gives_it(built: Path, cache: Path) -> None:
    from core.config import Choice

    (head,) = embed_shards(str(built), Choice("minilm"), cache_dir=cache)
    shard_set = ShardSet.open(str(built), text=head.name)
    assert (head.name, shard_set.embed_dim) == ("text.minilm", 384)
    captions = [shard_set.captions(sample) for sample in range(len(shard_set))]
    alone = encode_captions(minilm(), [c for own in captions for c in own], 256, lambda done: None)
    np.testing.assert_array_equal(np.concatenate([shard_set.embeddings(n) for n in range(len(shard_set))]), alone)


@pytest.mark.parametrize("encoder", ["", "minilm"])
def test_tokens_are_the_tokenizer_of_each_caption(built: Path, cache: Path, encoder: str) -> None:
    (head,) = add("tokens", built, cache=cache, **({"encoder": encoder} if encoder else {}))
    own = TEXT_ENCODERS[encoder]() if encoder else FakeEncoder()
    assert head.name == ("tokens.minilm" if encoder else "tokens.model")
    assert head.origin["tokenizer"] == vars(own.tokenizer) and head.origin["length"] == head.shape[0]
    shard_set = ShardSet.open(str(built))
    longest = 0
    for sample in range(len(shard_set)):
        rows = shard_set.column(head.name).of_captions(sample)
        for caption, row in zip(shard_set.captions(sample), rows, strict=True):
            (ids,) = own.tokenize([caption])
            longest = max(longest, len(ids))
            assert row.tolist() == ids + [-1] * (head.shape[0] - len(ids))
    assert head.shape == (longest,) and head.figures["cut"] == 0


def test_longer_captions_are_cut_by_the_tokenizer_and_counted(built: Path, cache: Path) -> None:
    (head,) = add("tokens", built, cache=cache, encoder="minilm", length=5)
    shard_set, own = ShardSet.open(str(built)), minilm()
    ids = [own.tokenize([c])[0] for n in range(len(shard_set)) for c in shard_set.captions(n)]
    rows = np.concatenate([shard_set.column("tokens.minilm").of_captions(n) for n in range(len(shard_set))])
    assert head.origin["cut"] == sum(len(i) > 5 for i in ids) > 0
    assert {row[-1] for row in rows.tolist()} == {ids[0][-1]}  # the end of text stays


def test_sets_of_one_command_share_the_length(built: Path, adopted: Path, cache: Path) -> None:
    heads = add("tokens", built, adopted, cache=cache, encoder="fake")
    assert heads[0].shape == heads[1].shape
    (alone,) = add("tokens", adopted, cache=cache, encoder="fake", name="alone")
    assert alone.shape < heads[1].shape


def test_an_encoder_that_is_not_here_is_named(built: Path, adopted: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match="unknown name 'minlm'. Did you mean 'minilm'"):
        add("text", built, cache=cache, encoder="minlm")
    with pytest.raises(WeightsError, match="not on this machine. Download them with `hf download"):
        add("text", built, cache=cache, encoder="hf_clip", model="nobody/nothing")
    with pytest.raises(ConfigError, match="so no tokenizer of its own. Name one: encoder="):
        add("tokens", adopted, cache=cache)
    with pytest.raises(ConfigError, match="length is 99; fake:model takes 3 to 32"):
        add("tokens", built, cache=cache, length=99)
    assert not (adopted / "columns").exists()


def test_a_local_encoder_of_the_set_is_asked_for(built: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(**options: str) -> FakeEncoder:
        raise WeightsError("fake: not on this machine.")

    monkeypatch.setitem(TEXT_ENCODERS, "fake", lambda model="", revision="", device="": gone())
    with pytest.raises(WeightsError, match="its encoder fake:model: .* Name it: encoder=..., and model="):
        add("tokens", built, cache=cache)


def test_webdataset_reads_a_set_with_columns(built: Path, cache: Path) -> None:
    import webdataset

    def keys() -> list[str]:
        tars = sorted(str(path) for path in built.glob("*.tar"))
        return [sample["__key__"] for sample in webdataset.WebDataset(tars, shardshuffle=False)]

    with_columns = keys()
    shutil.rmtree(built / "columns")
    assert keys() == with_columns and len(with_columns) == 20


def test_of_several_text_columns_one_is_named_once_embeddings_are_asked_for(adopted: Path, cache: Path) -> None:
    for name in ("text.one", "text.other"):
        add("text", adopted, cache=cache, encoder="fake", name=name)
    shard_set = ShardSet.open(str(adopted))  # previews, labels and features need none
    assert shard_set.text == "" and shard_set.text_encoder is None
    with pytest.raises(ManifestError, match=r"several text columns \(text.one, text.other\). Name one of them"):
        shard_set.embed_dim  # noqa: B018
    assert ShardSet.open(str(adopted), text="text.other").text_encoder == SPEC
