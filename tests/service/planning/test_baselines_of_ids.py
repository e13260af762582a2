"""Jobs whose baselines of ids are ids: of a column, the padding, or the row's own in another
order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import FixedSteps
from integrand.workers.data.prepasses.found import read_prepasses
from integrand.workers.methods.attribution import attribute
from integrand.workers.models.embeddings import at_embedding
from integrand.workers.philox import keys_of, uniforms
from integrand.workers.storage.store import Store
from tests.plugins.jobs import JobFolder
from tests.plugins.texts import TOKENS, model, text_fields, text_table

SHUFFLE = {"kind": "shuffle", "draws": 3, "seed": 5}


def against(net: Any, ids: list[int], others: list[list[int]]) -> np.ndarray:
    """The text's attributions, averaged over these in its place."""
    lookup, forward = at_embedding(net, "words")
    own = torch.tensor(ids)[None]
    mask = torch.ones_like(own)
    found = []
    for other in others:
        credits = attribute(
            forward,
            lookup(own, mask),
            baselines=lookup(torch.tensor(other)[None], mask),
            target=2,
            forward_args=(own, mask),
            accuracy=FixedSteps(steps=16),
        )
        found.append(credits.attributions.sum(-1)[0].numpy())
    return np.mean(found, 0)


def drawn_orders(row_id: int, length: int) -> np.ndarray:
    numbers = uniforms(keys_of([str(row_id)]), seed=5, stream=1 << 31, draws=range(3), count=length)
    return numbers[0].numpy().argsort(1)


def test_each_text_against_its_own_in_three_orders(texts: JobFolder):
    manifest = texts.run(**text_fields(texts, inputs=[TOKENS | {"baseline": SHUFFLE}]))
    found, net = texts.rows(manifest), model(texts)
    assert manifest.complete
    assert (found["draws"] == 3).all()
    for row, ids in enumerate(texts.rows_of("rows.parquet")["ids"].tolist()):
        own = np.array(ids)
        orders = drawn_orders(found["row_id"][row], len(own))
        expected = against(net, own.tolist(), own[orders].tolist())
        np.testing.assert_allclose(found["attr.tokens"][row], expected, rtol=1e-6, atol=1e-9)
        same = (own[orders] == own).all(0)  # blind to what the baseline does not change
        assert (found["attr.tokens"][row][same] == 0).all()


def test_ids_of_a_column_and_of_the_padding(texts: JobFolder):
    ids = [one.tolist() for one in texts.rows_of("rows.parquet")["ids"]]
    others = [[(7 * i + place) % 30 for place in range(len(one))] for i, one in enumerate(ids)]
    others[2] = others[2] + [1]
    others[3] = [*others[3][:-1], 30]
    others[4] = None
    column = pa.array(others, pa.list_(pa.int64()))
    texts.write_table("rows.parquet", text_table(ids, base=column))
    by_column = TOKENS | {"baseline": {"kind": "column", "column": "base"}}
    found = texts.rows(texts.run(**text_fields(texts, inputs=[by_column])))
    assert found["reason"][2:5].tolist() == [
        f"base has {len(others[2])} ids, expected {len(ids[2])} as in ids",
        "the baseline of tokens holds 30: expected ids from 0 to 29 at `words`",
        "base is null",
    ]
    net = model(texts)
    good = [row for row in range(len(ids)) if row not in (2, 3, 4)]
    assert found["reason"][good].isna().all()
    for row in good:
        expected = against(net, ids[row], [others[row]])
        np.testing.assert_allclose(found["attr.tokens"][row], expected, rtol=1e-6, atol=1e-9)
    padded = texts.rows(
        texts.run(**text_fields(texts, inputs=[TOKENS | {"baseline": {"kind": "pad"}}]))
    )
    constant = TOKENS | {"baseline": {"kind": "constant", "value": 0}}
    same = texts.rows(texts.run(**text_fields(texts, inputs=[constant])))
    pd.testing.assert_frame_equal(padded, same, check_exact=True)


@pytest.mark.parametrize("preserve", ["nothing", "dinucleotide"])
def test_no_bit_depends_on_the_cut_the_order_or_equal_rows(texts: JobFolder, preserve: str):
    letters = np.random.default_rng(1).integers(1, 5, (24, 20)).tolist()
    ids = [one[: 6 + row % 14] for row, one in enumerate(letters)]
    ids[9] = ids[3]  # told apart by its id
    texts.write_table("rows.parquet", text_table(ids))
    fields = text_fields(
        texts,
        inputs=[TOKENS],
        baseline=SHUFFLE | {"preserve": preserve},  # the job's covers ids, too
        accuracy={"kind": "adaptive", "tolerance": 1e-3},
    )
    compute = {"precision": "float32"}

    def run(rows: int, out: str) -> pd.DataFrame:
        cut = {"compute": compute | {"shard_rows": rows}, "output": {"uri": out}}
        return texts.rows(texts.run(**fields | cut), out)

    whole = run(24, "whole")
    pd.testing.assert_frame_equal(run(5, "cut"), whole, check_exact=True)
    assert not np.array_equal(whole["attr.tokens"][3], whole["attr.tokens"][9])
    assert (whole["baseline_spread"] > 0).any()
    table = text_table(ids)
    order = np.random.default_rng(5).permutation(24)
    texts.write_table("rows.parquet", table.take(pa.array(order)))
    again = run(7, "ordered").sort_values("row_id", ignore_index=True)
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    texts.write_table("rows.parquet", table.slice(3, 1))
    pd.testing.assert_frame_equal(
        run(7, "alone"), whole[3:4].reset_index(drop=True), check_exact=True
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad": None, "baseline": {"kind": "pad"}}, "a `pad` baseline is the input's `pad`"),
        ({"baseline": {"kind": "blur", "sigma": 2}}, "unknown kind `blur`"),
        ({"baseline": {"kind": "shuffle", "draws": 0}}, "greater than or equal to 1"),
        ({"baseline": {"kind": "shuffle", "preserve": "pairs"}}, "'nothing' or 'dinucleotide'"),
        ({"baseline": {"kind": "column", "column": "id"}}, r"(?s)column `id`.*lists of integers"),
        ({"baseline": {"kind": "column", "columns": ["id"]}}, "(?s)`column`, one list column"),
    ],
)
def test_baselines_that_are_no_ids_are_refused(
    texts: JobFolder, changes: dict[str, Any], message: str
):
    with pytest.raises(SpecError, match=message):
        texts.plan(**text_fields(texts, inputs=[TOKENS | changes]))


def test_categories_have_no_order(texts: JobFolder):
    texts.write_table("rows.parquet", pa.table({"id": [1, 2], "born": [1, 2], "lives": [2, 3]}))
    places = {"name": "p", "ids": ["born", "lives"], "embedding": "words", "baseline": SHUFFLE}
    with pytest.raises(SpecError, match=r"(?s)ids in lists, whose order.*columns born, lives"):
        texts.plan(**text_fields(texts, inputs=[places], forward_args=[]))


# --- rows of a dataset ---------------------------------------------------------------------------


def in_place(other: list[int], length: int) -> list[int]:
    """Another text cut to this length, or filled up with id 0."""
    return (other + [0] * length)[:length]


def test_one_text_in_place_of_all(texts: JobFolder):
    ids = [one.tolist() for one in texts.rows_of("rows.parquet")["ids"]]
    row = TOKENS | {"baseline": {"kind": "row", "row": 7}}
    found = texts.rows(texts.run(**text_fields(texts, inputs=[row])))
    net = model(texts)
    for own, credits in zip(ids, found["attr.tokens"], strict=True):
        expected = against(net, own, [in_place(ids[7], len(own))])
        np.testing.assert_allclose(credits, expected, rtol=1e-6, atol=1e-9)
    assert (found["attr.tokens"][7] == 0).all()


def test_drawn_texts_beside_constant_ids(texts: JobFolder):
    """Ids of the job's source that meet a condition, and two more baselines for each row."""
    ids = [one.tolist() for one in texts.rows_of("rows.parquet")["ids"]]
    group = {"kind": "training", "draws": 3, "where": "id % 2 = 0 and len(ids) > 3"}
    mask, pad = {"kind": "constant", "value": 29}, {"kind": "pad"}
    several = TOKENS | {"baseline": {"kind": "average", "of": [group, mask, pad]}}
    fields = text_fields(texts, inputs=[several])
    plan = texts.plan(ingest=True, **fields)
    (arrays,) = read_prepasses(Store(), plan).values()
    drawn = [[one for one in row if one >= 0] for row in arrays[0].tolist()]
    assert all(one in ids[::2] for one in drawn)
    found = texts.rows(texts.run(**fields))
    assert (found["draws"] == 5).all()
    net = model(texts)
    for own, credits in zip(ids, found["attr.tokens"], strict=True):
        others = [in_place(one, len(own)) for one in (*drawn, [29] * len(own), [])]
        np.testing.assert_allclose(credits, against(net, own, others), rtol=1e-6, atol=1e-9)


def test_the_same_rows_for_numbers_and_categories(texts: JobFolder):
    """A baseline of the job covers ids, too."""
    draw = np.random.default_rng(0)
    source = {
        "id": np.arange(12),
        **{name: draw.normal(size=12) for name in ("age", "income")},
        **{name: draw.integers(0, 4, 12) for name in ("plan_code", "born", "lives")},
    }
    texts.write_table("rows.parquet", pa.table(source))
    inputs = [
        {"name": "numbers", "columns": ["age", "income"]},
        {"name": "plan", "ids": "plan_code", "embedding": "plan"},
        {"name": "cities", "ids": ["born", "lives"], "embedding": "city"},
    ]
    fields = text_fields(
        texts,
        model=texts.model(name="Tabular"),
        inputs=inputs,
        forward_args=[],
        target={"kind": "scalar"},
        baseline={"kind": "training", "draws": 2},
    )
    plan = texts.plan(ingest=True, **fields)
    (arrays,) = read_prepasses(Store(), plan).values()
    found = texts.rows(texts.run(**fields))
    numbers, plans, cities = (torch.from_numpy(array) for array in arrays[:3])
    with torch.no_grad():
        starts = model(texts, "Tabular")(numbers, plans, cities)
    np.testing.assert_allclose(found["f_baseline"], float(starts.mean()), rtol=1e-9)
    np.testing.assert_allclose(
        found.filter(like="attr.").sum(1), found["f_input"] - found["f_baseline"], atol=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad": None, "baseline": {"kind": "row", "row": 1}}, r"(?s)the input's `pad`"),
        ({"baseline": {"kind": "average", "of": [{"kind": "zero"}]}}, "that are ids themselves"),
        (
            {"baseline": {"kind": "average", "of": [{"kind": "constant", "value": 0.5}]}},
            "one whole number from 0",
        ),
        ({"baseline": {"kind": "row", "row": 4}}, r"(?s)baseline of tokens holds 30.*from 0 to 29"),
    ],
)
def test_rows_that_cannot_stand_for_ids_are_refused(
    texts: JobFolder, changes: dict[str, Any], message: str
):
    ids = [[row + 1, 2, 3] for row in range(4)]
    texts.write_table("rows.parquet", text_table([*ids, [1, 30, 2]]))
    changed = {name: value for name, value in (TOKENS | changes).items() if value is not None}
    with pytest.raises(SpecError, match=message):
        texts.plan(ingest=True, **text_fields(texts, inputs=[changed]))


def test_numbers_have_no_padding(job: JobFolder):
    average = {"kind": "average", "of": [{"kind": "pad"}]}
    with pytest.raises(SpecError, match="an input of ids, which a pad baseline is for"):
        job.plan(baseline=average)
