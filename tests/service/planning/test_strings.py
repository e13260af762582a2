"""Jobs over strings: tokenised in the worker, attributed token by token, each token told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from integrand.schemas.errors import DataError, IntegrityError, SpecError
from integrand.schemas.specs.accuracy import FixedSteps
from integrand.schemas.specs.job import parse_spec
from integrand.service.checks.verify import verify_run
from integrand.service.planning.tuning import tune_job
from integrand.workers.methods.attribution import attribute
from integrand.workers.models.embeddings import at_embedding
from tests.plugins.jobs import JobFolder
from tests.plugins.strings import (
    MASK,
    REVIEWS,
    TOKENS,
    VOCABULARY,
    reviews_table,
    string_fields,
    tokenizer,
    write_tokenizer,
)
from tests.plugins.texts import GAUSS, model

FIXED = FixedSteps.model_validate(GAUSS)
EMPTY = {4: "review is empty: expected a text", 5: "review is null"}
EMPTY[6] = "review holds no token: expected a text"
LONG = "review has 18 tokens, expected at most 16 (max_length)"


def test_a_job_of_strings_equals_attributions_of_the_ids_one_by_one(strings: JobFolder) -> None:
    rows = strings.rows(strings.run(**string_fields()))
    assert rows["status"].tolist().count("unchecked") == 5
    reasons = dict(rows.loc[rows["status"] == "bad_input", "reason"])
    assert reasons == EMPTY | {7: LONG}
    lookup, forward = at_embedding(model(strings), "words")
    encoded = tokenizer()
    for row, text in enumerate(REVIEWS):
        if row in reasons:
            assert rows["attr.tokens"][row] is None
            continue
        found = encoded.encode(text)
        ids, mask = torch.tensor([found.ids]), torch.ones(1, len(found.ids))
        embedded = lookup(ids, mask)
        alone = attribute(
            forward,
            embedded,
            target=2,
            forward_args=(ids, mask),
            accuracy=FIXED,
        )
        expected = alone.attributions.sum(-1)[0]
        np.testing.assert_allclose(rows["attr.tokens"][row], expected, atol=1e-10)
        assert rows["tokens"][row].tolist() == found.tokens
        assert rows["token_special"][row].tolist() == [bool(m) for m in found.special_tokens_mask]


def test_each_token_says_where_it_stands_and_what_word_it_is_of(strings: JobFolder) -> None:
    rows = strings.rows(strings.run(**string_fields()))
    assert rows["words"][2].tolist() == (
        ["[CLS]", "Unlikely", "plays", ";", "the", "film", "is", "playing", ".", "[SEP]"]
    )
    assert rows["tokens"][2].tolist()[1:5] == ["un", "##like", "##ly", "play"]
    assert rows["token_word"][2].tolist() == [0, 1, 1, 1, 2, 2, 3, 4, 5, 6, 7, 7, 8, 9]
    for row in (0, 1, 2, 3, 8):
        text = REVIEWS[row]
        assert text is not None
        own = zip(rows["token_start"][row], rows["token_end"][row], strict=True)
        pieces = [text[start:end].lower() for start, end in own]
        tokens = [token.removeprefix("##") for token in rows["tokens"][row]]
        for piece, token, special in zip(pieces, tokens, rows["token_special"][row], strict=True):
            assert token == "[UNK]" or piece == ("" if special else token)
    assert rows["words"][8].tolist() == ["[CLS]", "grüße", "the", "film", "[SEP]"]
    assert rows["words"][4] is None


def test_a_long_text_is_cut_where_the_spec_says_so_and_says_by_how_much(
    strings: JobFolder,
) -> None:
    changed = TOKENS | {"long": "truncate", "max_length": 6}
    rows = strings.rows(strings.run(**string_fields(inputs=[changed])))
    assert rows["tokens_left_out"].tolist() == [1, 0, 8, 0, 0, 0, 0, 12, 0]
    assert rows["tokens"][7].tolist() == ["[CLS]", "the", "the", "the", "the", "[SEP]"]
    assert rows["status"][7] == "unchecked"


def test_words_are_reported_as_the_sums_of_their_pieces(strings: JobFolder) -> None:
    tokens = strings.rows(strings.run(**string_fields()))
    grouped = {"uri": "words", "groups": {"tokens": {"words": True}}}
    manifest = strings.run(**string_fields(output=grouped))
    words = strings.rows(manifest, "words")
    for row in (0, 1, 2, 3, 8):
        sums = np.bincount(tokens["token_word"][row], tokens["attr.tokens"][row])
        np.testing.assert_allclose(words["attr.tokens"][row], sums, atol=1e-12)
        assert len(words["words"][row]) == len(sums)
    both = strings.rows(
        strings.run(**string_fields(output=grouped | {"uri": "both", "with_features": True})),
        "both",
    )
    np.testing.assert_array_equal(both["group.tokens"][2], words["attr.tokens"][2])
    np.testing.assert_allclose(both["attr.tokens"][2], tokens["attr.tokens"][2], atol=1e-12)


@pytest.mark.parametrize(
    ("baseline", "id"),
    [
        ({"kind": "token", "token": "[MASK]"}, VOCABULARY.index("[MASK]")),
        ({"kind": "pad"}, 0),
        ({"kind": "constant", "value": 1}, 1),
    ],
)
def test_a_baseline_of_a_token_is_that_of_its_id(
    strings: JobFolder, baseline: dict[str, Any], id: int
) -> None:
    changed = TOKENS | {"baseline": baseline}
    rows = strings.rows(strings.run(**string_fields(inputs=[changed])))
    lookup, forward = at_embedding(model(strings), "words")
    ids = torch.tensor([tokenizer().encode(REVIEWS[0]).ids])
    mask = torch.ones(ids.shape)
    alone = attribute(
        forward,
        lookup(ids, mask),
        baselines=lookup(torch.full_like(ids, id), mask),
        target=2,
        forward_args=(ids, mask),
        accuracy=FIXED,
    )
    expected = alone.attributions.sum(-1)[0]
    np.testing.assert_allclose(rows["attr.tokens"][0], expected, atol=1e-10)


def test_a_row_keeps_its_bits_whatever_its_neighbours_and_shard(strings: JobFolder) -> None:
    first = strings.rows(strings.run(**string_fields()))
    other = {"shard_rows": 2, "precision": "float64"}
    turned = reviews_table(REVIEWS[::-1])
    strings.write_table("rows.parquet", turned)
    second = strings.rows(strings.run(**string_fields(output={"uri": "o"}, compute=other)), "o")
    for row in (0, 1, 2, 3, 8):
        mine, theirs = first["attr.tokens"][row], second["attr.tokens"][8 - row]
        np.testing.assert_array_equal(mine, theirs)
        assert first["tokens"][row].tolist() == second["tokens"][8 - row].tolist()


def test_types_of_tokens_follow_the_ids(strings: JobFolder) -> None:
    pairs = """

class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.types, self.last = nn.Embedding(30, 8), nn.Embedding(2, 8), nn.Linear(8, 3)

    def forward(self, ids, mask, types):
        m = mask.to(self.last.weight.dtype)[..., None]
        return self.last((torch.tanh(self.words(ids) + self.types(types)) * m).sum(1) / m.sum(1))
"""
    place = strings.path / f"{strings.module}.py"
    place.write_text(place.read_text() + pairs)
    types = {"name": "types", "types_of": "tokens", "dtype": "int64"}
    fields = string_fields(forward_args=[MASK, types], model=strings.model(name="Pairs"))
    rows = strings.rows(strings.run(**fields))
    assert rows["status"].tolist().count("unchecked") == 5
    assert rows["gap"].abs().max() < 1e-8


def test_strings_of_a_text_file_are_read_like_those_of_parquet(strings: JobFolder) -> None:
    parquet = strings.rows(strings.run(**string_fields()))
    lines = [json.dumps({"id": i, "review": text}) for i, text in enumerate(REVIEWS)]
    (strings.path / "data" / "rows.parquet").unlink()
    (strings.path / "data" / "rows.jsonl").write_text("\n".join(lines))
    found = strings.rows(strings.run(**string_fields(output={"uri": "o"})), "o")
    for row in (0, 1, 2, 3, 8):
        np.testing.assert_array_equal(parquet["attr.tokens"][row], found["attr.tokens"][row])


def test_bytes_that_are_no_text_are_that_rows_fault(strings: JobFolder) -> None:
    broken = pa.array([b"a film", b"\xff\xfe"], pa.binary()).view(pa.string())
    strings.write_table("rows.parquet", pa.table({"id": [0, 1], "review": broken}))
    rows = strings.rows(strings.run(**string_fields()))
    assert rows["status"].tolist() == ["unchecked", "bad_input"]
    assert rows["reason"][1] == "review is not UTF-8"


# --- what is refused before workers start -------------------------------------------------------


def test_a_plan_is_pinned_to_the_tokenizer_and_not_to_where_it_lies(strings: JobFolder) -> None:
    plan = strings.plan(**string_fields())
    (part,) = plan.spec.texts
    assert part.tokenizer.endswith("/tokenizer/tokenizer.json")
    assert part.tokenizer_sha256 is not None
    assert part.pad == 0
    write_tokenizer(strings.path / "moved")
    moved = strings.plan(**string_fields(inputs=[TOKENS | {"tokenizer": "moved"}]))
    assert moved.run_id == plan.run_id
    other = tokenizer()
    other.add_tokens(["film!"])
    write_tokenizer(strings.path / "tokenizer", other)
    assert strings.plan(**string_fields()).run_id != plan.run_id
    pinned = TOKENS | {"tokenizer_sha256": part.tokenizer_sha256}
    with pytest.raises(IntegrityError, match="sha256"):
        strings.plan(**string_fields(inputs=[pinned]))


def test_a_tokenizer_with_more_ids_than_the_model_embeds_is_refused(strings: JobFolder) -> None:
    larger = tokenizer()
    larger.add_tokens([f"token{i}" for i in range(7)])
    write_tokenizer(strings.path / "tokenizer", larger)
    with pytest.raises(SpecError, match=r"at most 30 ids, as `words` embeds\n  seen: 32"):
        strings.plan(**string_fields())


def test_what_is_no_tokenizer_is_refused(strings: JobFolder) -> None:
    (strings.path / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"expected: a tokenizer\.json"):
        strings.plan(**string_fields())
    with pytest.raises(DataError, match="nothing there"):
        strings.plan(**string_fields(inputs=[TOKENS | {"tokenizer": "elsewhere"}]))


def test_without_the_library_the_message_says_how_to_install_it(
    strings: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(SpecError, match=r"pip install 'integrand\[text\]'"):
        strings.plan(**string_fields())


def test_an_unknown_token_as_a_baseline_is_refused(strings: JobFolder) -> None:
    changed = TOKENS | {"baseline": {"kind": "token", "token": "[MSAK]"}}
    with pytest.raises(SpecError, match=r"a token of the vocabulary\n  seen: '\[MSAK\]'"):
        strings.plan(**string_fields(inputs=[changed]))


def test_a_column_of_numbers_is_no_text(strings: JobFolder) -> None:
    with pytest.raises(SpecError, match="expected: strings"):
        strings.plan(**string_fields(inputs=[TOKENS | {"text": "id"}]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": [TOKENS | {"embedding": ["words"]}]}, "a text has one embedding"),
        (
            {"inputs": [TOKENS | {"baseline": {"kind": "column", "column": "x"}}]},
            "a text's baseline is no column",
        ),
        ({"inputs": [TOKENS | {"long": "cut"}]}, "long"),
        (
            {"inputs": [TOKENS, TOKENS | {"name": "other", "embedding": "others"}]},
            "a job has one input of texts",
        ),
        (
            {"forward_args": [{"name": "types", "types_of": "mask"}]},
            "`types_of` names no input of texts: mask",
        ),
        (
            {"output": {"uri": "o", "groups": {"tokens": {"column": "w"}}}},
            "a text is grouped by `words: true`",
        ),
        (
            {
                "inputs": [
                    {
                        "name": "tokens",
                        "ids": "ids",
                        "embedding": "words",
                        "baseline": {"kind": "token", "token": "[MASK]"},
                    }
                ]
            },
            "a `token` baseline is for texts",
        ),
        (
            {
                "inputs": [{"name": "tokens", "ids": "ids", "embedding": "words"}],
                "output": {"uri": "o", "groups": {"tokens": {"words": True}}},
            },
            "words are those of an input of texts",
        ),
    ],
)
def test_specs_that_do_not_fit_texts(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    fields = JobFolder(tmp_path).fields(**string_fields(accuracy=GAUSS, **change))
    with pytest.raises(SpecError, match=said):
        parse_spec(fields)


# --- other baselines, and runs held against themselves ------------------------------------------


@pytest.mark.parametrize(
    "baseline",
    [
        {"kind": "training", "draws": 2},
        {"kind": "row", "row": 0},
        {"kind": "shuffle", "draws": 2},
        {"kind": "average", "of": [{"kind": "pad"}, {"kind": "token", "token": "[MASK]"}]},
    ],
    ids=lambda baseline: baseline["kind"],
)
def test_baselines_of_ids_stand_for_texts(strings: JobFolder, baseline: dict[str, Any]) -> None:
    manifest = strings.run(**string_fields(inputs=[TOKENS | {"baseline": baseline}]))
    rows = strings.rows(manifest)
    assert rows["status"].tolist().count("unchecked") == 5
    clean = rows["status"] == "unchecked"
    assert rows["gap"][clean].abs().max() < 1e-6


def test_a_run_of_strings_holds_against_itself(strings: JobFolder) -> None:
    output = {"uri": "out", "groups": {"tokens": {"words": True}}, "with_features": True}
    manifest = strings.run(
        **string_fields(
            output=output, target={"kind": "top_k", "k": 2}, accuracy={"kind": "adaptive"}
        )
    )
    found = verify_run(strings.run_uri(manifest), trusted=(strings.module,), sample=4)
    assert found.holds, found
    rows = strings.rows(manifest)
    assert rows["tokens"][0].tolist() == rows["tokens"][1].tolist()


def test_step_batches_of_texts_are_timed(strings: JobFolder) -> None:
    changed = TOKENS | {"baseline": {"kind": "token", "token": "[MASK]"}}
    spec = strings.spec(**string_fields(inputs=[changed]))
    found = tune_job(spec, base=str(strings.path), trusted=(strings.module,))
    assert found.trials
