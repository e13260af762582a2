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
from integrand.workers.methods.attribution import attribute
from integrand.workers.models.embeddings import at_embedding
from integrand.workers.philox import keys_of, uniforms
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
