"""Texts as tokens: their words, their ends, and tokenizers of other makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from integrand.schemas.specs.inputs import TextInput
from integrand.workers.data.tokenizing import left_out_of, reasons_of_texts, tokens_of, with_tokens
from integrand.workers.storage.store import Store
from tests.plugins.strings import tokenizer, write_tokenizer

tokenizers = pytest.importorskip("tokenizers")


def made(folder: Path, texts: Any, own: Any = None, **changes: Any) -> pa.Table:
    write_tokenizer(folder, own)
    fields = {"name": "t", "text": "x", "tokenizer": str(folder), "embedding": "e"}
    part = TextInput.model_validate(fields | changes)
    return with_tokens(Store(), part, pa.table({"x": texts}), lambda: None)


def sentencepiece() -> Any:
    """Like Llama's: no cut before pieces are made, and spaces are part of them."""
    vocabulary = ["<unk>", "▁the", "▁fil", "m", "▁", "s", "▁is", "t", "h", "e", "f", "i", "l"]
    numbers = {token: number for number, token in enumerate(vocabulary)}
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("f", "i"), ("fi", "l"), ("▁", "fil")]
    merges += [("i", "s"), ("▁", "is")]
    for left, right in merges:
        numbers.setdefault(left + right, len(numbers))
    own = tokenizers.Tokenizer(tokenizers.models.BPE(numbers, merges, unk_token="<unk>"))
    own.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    return own


def test_without_a_cut_of_its_own_white_space_makes_words(tmp_path: Path) -> None:
    table = made(tmp_path, ["the films is"], sentencepiece())
    assert tokens_of(table, "t", "tokens").to_pylist() == [["▁the", "▁fil", "m", "s", "▁is"]]
    assert tokens_of(table, "t", "word").to_pylist() == [[0, 1, 1, 1, 2]]
    assert tokens_of(table, "t", "words").to_pylist() == [["the", "films", "is"]]


def test_special_tokens_may_be_left_away(tmp_path: Path) -> None:
    table = made(tmp_path, ["this film"], special="drop")
    assert tokens_of(table, "t", "tokens").to_pylist() == [["this", "film"]]
    assert tokens_of(table, "t", "special").to_pylist() == [[False, False]]


def test_texts_are_the_same_in_any_type_of_strings_and_any_cut(tmp_path: Path) -> None:
    texts = ["this film", None, "bad", "great plays"] * 600
    plain = made(tmp_path, pa.array(texts))
    expected = tokens_of(plain, "t", "ids").to_pylist()
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        other = made(tmp_path, pa.array(texts).cast(kind))
        assert tokens_of(other, "t", "ids").to_pylist() == expected
    cut = pa.chunked_array([texts[:7], texts[7:1500], texts[1500:]], pa.string())
    assert tokens_of(made(tmp_path, cut), "t", "ids").to_pylist() == expected
    assert expected[:3] == [tokenizer().encode("this film").ids, None, [2, 10, 3]]


def test_a_limit_that_leaves_nothing_of_the_text_is_its_reason(tmp_path: Path) -> None:
    table = made(tmp_path, ["this film"], max_length=2, long="truncate")
    assert reasons_of_texts(table, "t") == ["x: max_length 2 leaves no token of the text"]
    assert left_out_of(table, "t") == [None]


def test_padding_and_truncation_of_the_file_are_not_used(tmp_path: Path) -> None:
    own = tokenizer()
    own.enable_truncation(3)
    own.enable_padding(length=9)
    table = made(tmp_path, ["this film is great"], own)
    assert tokens_of(table, "t", "tokens").to_pylist() == [
        ["[CLS]", "this", "film", "is", "great", "[SEP]"]
    ]
