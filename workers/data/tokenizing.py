"""Texts as token ids: a column of strings gets, beside it, one of what its tokenizer makes of each.

The tokenizer is Hugging Face's `tokenizers`, read from a tokenizer.json whose digest the plan
holds: the same ids on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import pyarrow as pa

from integrand.schemas.errors import DataError, IntegrityError, SpecError
from integrand.schemas.specs.inputs import TextInput
from integrand.schemas.uris import Uri
from integrand.workers.data.gathering import storage_of
from integrand.workers.storage.store import Store

FILE = "tokenizer.json"
_PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>")
"""What tokenizers call padding that do not say what they pad with."""
_ROWS = 1024
"""Texts that are tokenised at once."""

Field = Literal["ids", "types", "special", "start", "end", "word", "tokens", "words"]
TOKENS = pa.struct(
    [
        ("reason", pa.string()),
        ("left_out", pa.int32()),
        ("ids", pa.list_(pa.int64())),
        ("types", pa.list_(pa.int64())),
        ("special", pa.list_(pa.bool_())),
        ("start", pa.list_(pa.int32())),
        ("end", pa.list_(pa.int32())),
        ("word", pa.list_(pa.int64())),
        ("tokens", pa.list_(pa.string())),
        ("words", pa.list_(pa.string())),
    ]
)
"""What is made of a text: lists with one entry for each token (`words`: for each word) and how many
tokens are left out, or null in all of them and the reason why.
"""


class _Encoding(Protocol):
    """What `tokenizers` says of one text; offsets count characters."""

    ids: list[int]
    type_ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]
    word_ids: list[int | None]


class _Library(Protocol):
    """The part of `tokenizers.Tokenizer` that is used here."""

    padding: dict[str, Any] | None
    pre_tokenizer: object

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool
    ) -> list[_Encoding]: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> _Encoding: ...
    def get_vocab(self) -> dict[str, int]: ...
    def token_to_id(self, token: str) -> int | None: ...
    def enable_truncation(self, max_length: int) -> None: ...
    def no_truncation(self) -> None: ...
    def no_padding(self) -> None: ...


# --- the file ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer as its file describes it, but for padding and truncation, which are ours.

    whole  of texts as they are
    cut    of their first tokens, with the special ones around them
    pad    the id that it pads with; None where it does not say
    """

    whole: _Library
    cut: _Library
    pad: int | None

    @property
    def ids(self) -> int:
        """How many ids there are, up to the largest."""
        return max(self.whole.get_vocab().values(), default=-1) + 1


def tokenizer_file(store: Store, text: str, base: str = "/") -> Uri:
    """Where the tokenizer.json is that a spec names, or whose folder it names."""
    uri = store.parse(text, base)
    return uri if uri.path.endswith(".json") else uri.child(FILE)


def read_tokenizer(store: Store, part: TextInput, base: str = "/") -> tuple[Tokenizer, str]:
    """The tokenizer of a text, and the sha256 of its file. Raises SpecError where the library is
    missing, DataError for a file that is none, IntegrityError for another file than was planned.
    """
    uri = tokenizer_file(store, part.tokenizer, base)
    try:
        data = store.read(uri)
    except FileNotFoundError:
        raise DataError(
            f"tokenizer {uri}",
            expected=f"a {FILE}",
            seen="nothing there",
            next_step=f"name it, or the folder that holds it, in inputs.{part.name}.tokenizer",
        ) from None
    seen = hashlib.sha256(data).hexdigest()
    if part.tokenizer_sha256 not in (None, seen):
        raise IntegrityError(
            f"tokenizer {uri}",
            expected=f"sha256 {str(part.tokenizer_sha256)[:16]}…",
            seen=f"{seen[:16]}…",
            next_step="plan again: another tokenizer is another run",
        )
    return parse_tokenizer(data, str(uri), part.max_length), seen


@lru_cache(maxsize=8)
def planned_tokenizer(store: Store, part: TextInput) -> Tokenizer:
    """The tokenizer of a text as it was planned, read once. Raises like `read_tokenizer`."""
    return read_tokenizer(store, part)[0]


def parse_tokenizer(data: bytes, where: str, max_length: int) -> Tokenizer:
    """A tokenizer.json. Raises DataError for anything else, SpecError without the library."""
    try:
        import tokenizers
    except ImportError:
        raise SpecError(
            f"tokenizer {where}",
            expected="the package `tokenizers`",
            seen="it is not installed",
            next_step="pip install 'integrand[text]', here and on the workers",
        ) from None
    try:
        whole, cut = (_plain(tokenizers.Tokenizer.from_buffer(data)) for _ in range(2))
        pad = _pad_of(tokenizers.Tokenizer.from_buffer(data))
        cut.enable_truncation(max_length)
    except Exception as error:  # the library raises Exception itself
        raise DataError(
            f"tokenizer {where}",
            expected="a tokenizer.json of Hugging Face's tokenizers",
            seen=f"{type(error).__name__}: {str(error)[:200]}",
            next_step="save it with the tokenizer's save(), or AutoTokenizer's save_pretrained()",
        ) from error
    return Tokenizer(whole, cut, pad)


def _plain(library: _Library) -> _Library:
    library.no_padding()
    library.no_truncation()
    return library


def _pad_of(library: _Library) -> int | None:
    if library.padding:
        return int(library.padding["pad_id"])
    named = (library.token_to_id(token) for token in _PAD_TOKENS)
    return next((found for found in named if found is not None), None)


# --- rows ----------------------------------------------------------------------------------------


def tokens_column(name: str) -> str:
    """Name of the column that holds what was made of the texts of an input."""
    return f"_tokens.{name}"


def with_tokens(
    store: Store, part: TextInput, table: pa.Table, tick: Callable[[], None]
) -> pa.Table:
    """A source's rows with a column of TOKENS beside those of an input of texts; ticks as rows are
    tokenised. No row raises: why there are no tokens is its reason.
    """
    tokenizer = planned_tokenizer(store, part)
    made = []
    for some in _parts(table.column(part.text)):
        made.append(_tokens(part, tokenizer, some))
        tick()
    return table.append_column(tokens_column(part.name), pa.chunked_array(made, TOKENS))


def tokens_of(table: pa.Table, name: str, field: Field) -> pa.Array:
    """One list for each row, of an input of texts; null where it has no tokens."""
    column = table.column(tokens_column(name)).combine_chunks()
    return pa.array(column.field(field).to_pylist(), TOKENS.field(field).type)


def reasons_of_texts(table: pa.Table, name: str) -> list[str | None]:
    """Why rows have no tokens."""
    column = table.column(tokens_column(name)).combine_chunks()
    found: list[str | None] = column.field("reason").to_pylist()
    return found


def left_out_of(table: pa.Table, name: str) -> list[int | None]:
    """How many tokens rows lost at their end."""
    column = table.column(tokens_column(name)).combine_chunks()
    found: list[int | None] = column.field("left_out").to_pylist()
    return found


def _parts(column: pa.ChunkedArray) -> Iterator[pa.ChunkedArray]:
    for start in range(0, len(column), _ROWS):
        yield column.slice(start, _ROWS)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One text, or the reason against it."""

    reason: str | None = None
    left_out: int | None = None
    ids: list[int] | None = None
    types: list[int] | None = None
    special: list[bool] | None = None
    start: list[int] | None = None
    end: list[int] | None = None
    word: list[int] | None = None
    tokens: list[str] | None = None
    words: list[str] | None = None


def _tokens(part: TextInput, tokenizer: Tokenizer, column: pa.ChunkedArray) -> pa.Array:
    texts = _strings(column)
    given = [text if isinstance(text, str) else "" for text in texts]
    found = tokenizer.whole.encode_batch(given, add_special_tokens=part.special == "keep")
    rows = []
    for text, encoding in zip(texts, found, strict=True):
        rows.append(_row(part, tokenizer, text, encoding))
    arrays = []
    for field in TOKENS:
        arrays.append(pa.array([getattr(row, field.name) for row in rows], field.type))
    return pa.StructArray.from_arrays(arrays, fields=list(TOKENS))


def _strings(column: pa.ChunkedArray) -> list[str | bytes | None]:
    """Texts, None where they are null; bytes where they are not UTF-8, which Parquet does not
    enforce.
    """
    plain = storage_of(column)
    if pa.types.is_null(plain.type):
        return [None] * len(plain)
    raw = plain.cast(pa.large_binary()).to_pylist()
    return [None if one is None else _decoded(one) for one in raw]


def _decoded(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _row(
    part: TextInput, tokenizer: Tokenizer, text: str | bytes | None, encoding: _Encoding
) -> _Row:
    name, most = part.text, part.max_length
    if text is None:
        return _Row(reason=f"{name} is null")
    if isinstance(text, bytes):
        return _Row(reason=f"{name} is not UTF-8")
    if all(encoding.special_tokens_mask):
        what = "is empty" if not text else "holds no token"
        return _Row(reason=f"{name} {what}: expected a text")
    length = len(encoding.ids)
    if length <= most:
        return _told(tokenizer, text, encoding, 0)
    if part.long == "bad_input":
        return _Row(reason=f"{name} has {length} tokens, expected at most {most} (max_length)")
    cut = tokenizer.cut.encode(text, add_special_tokens=part.special == "keep")
    if all(cut.special_tokens_mask):
        return _Row(reason=f"{name}: max_length {most} leaves no token of the text")
    return _told(tokenizer, text, cut, length - len(cut.ids))


def _told(tokenizer: Tokenizer, text: str, encoding: _Encoding, left_out: int) -> _Row:
    word = _word_numbers(tokenizer, text, encoding)
    special = [bool(mark) for mark in encoding.special_tokens_mask]
    return _Row(
        left_out=left_out,
        ids=encoding.ids,
        types=encoding.type_ids,
        special=special,
        start=[start for start, _ in encoding.offsets],
        end=[end for _, end in encoding.offsets],
        word=word,
        tokens=encoding.tokens,
        words=_words(text, encoding, word),
    )


def _word_numbers(tokenizer: Tokenizer, text: str, encoding: _Encoding) -> list[int]:
    """From 0, one after the other. Words are those that the tokenizer cuts before it makes pieces;
    where it cuts none, what white space does.
    """
    numbers: list[int] = []
    before: object = None
    for place, own in enumerate(encoding.word_ids):
        key: object = own
        if encoding.special_tokens_mask[place] or own is None:
            key = ("alone", place)
        elif tokenizer.whole.pre_tokenizer is None:
            start, end = encoding.offsets[place]
            key = ("from", place) if _begins(text, start, end) or not _inner(before) else before
        numbers.append(numbers[-1] + (key != before) if numbers else 0)
        before = key
    return numbers


def _inner(key: object) -> bool:
    """Whether a piece may go on with the word before it."""
    return isinstance(key, tuple) and key[0] == "from"


def _begins(text: str, start: int, end: int) -> bool:
    """Whether white space stands at the beginning of a piece, or before it."""
    return text[start:end][:1].isspace() or text[max(0, start - 1) : start].isspace()


def _words(text: str, encoding: _Encoding, word: Sequence[int]) -> list[str]:
    """Each word as it stands in the text; the token itself where it stands nowhere."""
    found: list[str] = []
    for number in range(word[-1] + 1):
        places = [place for place, own in enumerate(word) if own == number]
        start, end = encoding.offsets[places[0]][0], encoding.offsets[places[-1]][1]
        found.append(text[start:end].strip() or encoding.tokens[places[0]])
    return found
