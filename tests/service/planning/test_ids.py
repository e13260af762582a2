"""Jobs over ids, from spec to pandas: texts of any length, categories beside numbers, repeated
rows.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import FixedSteps
from integrand.service.reports.rows import largest_attributions
from integrand.service.runs.query import open_run
from integrand.workers.methods.attribution import attribute
from integrand.workers.models.embeddings import at_embedding
from tests.plugins.jobs import JobFolder
from tests.plugins.texts import MASK, MODELS, TOKENS, footers, model, text_fields, text_table

# --- texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "baseline", [{"kind": "zero"}, {"kind": "constant", "value": 3}], ids=lambda b: b["kind"]
)
def test_each_text_gets_what_it_gets_alone(texts: JobFolder, baseline: dict[str, Any]):
    manifest = texts.run(**text_fields(texts, inputs=[TOKENS | {"baseline": baseline}]))
    found, net = texts.rows(manifest), model(texts)
    assert manifest.complete
    lookup, forward = at_embedding(net, "words")
    for ids, row in zip(texts.rows_of("rows.parquet")["ids"], found.itertuples(), strict=True):
        one = torch.tensor(ids)[None].long()
        mask = torch.ones_like(one)
        start = lookup(torch.full_like(one, 3), mask) if baseline["kind"] == "constant" else None
        alone = attribute(
            forward,
            lookup(one, mask),
            baselines=start,
            target=2,
            forward_args=(one, mask),
            accuracy=FixedSteps(steps=16),
        )
        credits = found.loc[row.Index, "attr.tokens"]
        np.testing.assert_allclose(credits, alone.attributions.sum(-1)[0], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(
            row.attribution_sum - row.gap, alone.f_input - alone.f_baseline, atol=1e-9
        )
        assert abs(row.gap) < 1e-4


def test_the_classifier_end_to_end(texts: JobFolder):
    """As in the documentation: adaptive, float32, argmax; read with pandas and with open_run."""
    manifest = texts.run(
        **text_fields(texts, target={"kind": "argmax"}, accuracy={"kind": "adaptive"}, compute={})
    )
    found, source = texts.rows(manifest), texts.rows_of("rows.parquet")
    assert manifest.complete
    assert set(found["status"]) <= {"ok", "at_precision_floor"}
    assert [len(a) for a in found["attr.tokens"]] == [len(i) for i in source["ids"]]
    np.testing.assert_allclose(
        [a.sum() for a in found["attr.tokens"]], found["attribution_sum"], atol=1e-5
    )
    assert (
        found["gap"].abs() <= 0.011 * np.array([np.abs(a).sum() for a in found["attr.tokens"]])
    ).all()
    assert found["attr.tokens"].iloc[0].dtype == np.float32
    logits = torch.cat(
        [
            model(texts)(i[None], torch.ones_like(i)[None])
            for i in map(torch.tensor, map(list, source["ids"]))
        ]
    )
    assert found["target"].tolist() == logits.argmax(1).tolist()
    run = open_run(str(texts.run_uri(manifest).path))
    beside = run.to_pandas(inputs=True)
    assert all(len(i) == len(a) for i, a in zip(beside["ids"], beside["attr.tokens"], strict=True))
    top = run.top_features()
    assert top["feature"].tolist() == ["tokens"]
    assert top["mean"][0] == pytest.approx(found["attribution_sum"].mean(), rel=1e-4)
    named = largest_attributions(run, run.rows(0).iloc[0])
    assert sorted(named["feature"]) == sorted(f"tokens[{i}]" for i in range(len(source["ids"][0])))


@pytest.mark.parametrize(
    "compute", [{"precision": "float32"}, {"precision": "float32", "batch_rows": 16}], ids=str
)
def test_no_bit_depends_on_the_cut_or_the_order(texts: JobFolder, compute: dict[str, Any]):
    fields = text_fields(
        texts, accuracy={"kind": "adaptive", "tolerance": 1e-3}, target={"kind": "all"}
    )
    runs = {
        rows: texts.run(
            **fields | {"compute": compute | {"shard_rows": rows}, "output": {"uri": f"out{rows}"}}
        )
        for rows in (1, 7, 40)
    }
    assert len({m.digest for m in runs.values()}) == 1
    whole = texts.rows(runs[40], "out40")
    for rows in (1, 7):
        pd.testing.assert_frame_equal(texts.rows(runs[rows], f"out{rows}"), whole, check_exact=True)
    shuffled = np.random.default_rng(5).permutation(40)
    texts.write_table(
        "rows.parquet",
        text_table(texts.rows_of("rows.parquet")["ids"].tolist()).take(pa.array(shuffled)),
    )
    other = texts.run(
        **fields | {"compute": compute | {"shard_rows": 7}, "output": {"uri": "shuffled"}}
    )
    again = texts.rows(other, "shuffled").sort_values(["row_id", "target"], ignore_index=True)
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    assert other.digest == runs[40].digest


def test_without_padding_rows_of_one_length_go_together(texts: JobFolder):
    exact = {k: v for k, v in TOKENS.items() if k != "pad"}
    fields = text_fields(texts, inputs=[exact], forward_args=[], model=texts.model(name="Unmasked"))
    manifest = texts.run(**fields)
    masked = texts.run(**text_fields(texts, output={"uri": "masked"}))
    for one, other in zip(
        texts.rows(manifest)["attr.tokens"],
        texts.rows(masked, "masked")["attr.tokens"],
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-12)


def test_bad_texts_keep_their_place_and_say_why(texts: JobFolder):
    good = [1, 2, 3]
    ids = [good, None, [], [1, None], [4, -2, 5], list(range(1, 22)), [1, 30], good]
    texts.write_table("rows.parquet", text_table(ids))
    manifest = texts.run(**text_fields(texts))
    found = texts.rows(manifest)
    assert found["reason"][1:7].tolist() == [
        "ids is null",
        "ids has 0 ids, expected 1 to 20",
        "ids[1] is null",
        "ids[1] is -2: expected an id, an integer from 0",
        "ids has 21 ids, expected 1 to 20",
        "tokens holds 30: expected ids from 0 to 29 at `words`",
    ]
    assert found["status"].tolist() == ["unchecked", *["bad_input"] * 6, "unchecked"]
    assert found["attr.tokens"][1:7].isna().all()
    assert found["attribution_sum"].isna().tolist() == [False, *[True] * 6, False]
    alone = texts.rows(
        texts.run(
            **text_fields(
                texts,
                source={"uri": "data"},
                compute={"precision": "float64", "shard_rows": 1},
                output={"uri": "alone"},
            )
        ),
        "alone",
    )
    np.testing.assert_array_equal(alone["attr.tokens"][7], found["attr.tokens"][7])


def test_fixed_lists_give_fixed_lists(texts: JobFolder):
    ids = np.random.default_rng(1).integers(1, 30, (12, 5))
    column = pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), 5)
    texts.write_table("rows.parquet", pa.table({"id": np.arange(12), "ids": column}))
    fields = text_fields(texts)
    manifest = texts.run(**fields)
    texts.write_table("rows.parquet", text_table(ids.tolist()))
    varying = texts.run(**fields | {"output": {"uri": "varying"}})
    found = open_run(str(texts.run_uri(manifest).path))
    assert str(found.schema.field("attr.tokens").type) == "fixed_size_list<element: double>[5]"
    one, other = texts.rows(manifest)["attr.tokens"], texts.rows(varying, "varying")["attr.tokens"]
    np.testing.assert_allclose(np.stack(one), np.stack(other), rtol=1e-9, atol=1e-12)


def test_texts_from_json_lines(texts: JobFolder):
    source = texts.rows_of("rows.parquet")
    lines = [
        json.dumps({"id": i, "ids": ids.tolist()})
        for i, ids in zip(source["id"], source["ids"], strict=True)
    ]
    (texts.path / "text").mkdir()
    (texts.path / "text" / "rows.jsonl").write_text("\n".join(lines))
    manifest = texts.run(**text_fields(texts))
    other = texts.run(
        **text_fields(texts, source={"uri": "text", "row_id": "id"}, output={"uri": "json"})
    )
    assert other.digest == manifest.digest


def test_a_mean_baseline_of_numbers_beside_texts(texts: JobFolder):
    (texts.path / f"{texts.module}.py").write_text(
        MODELS
        + """
class Beside(Text):
    def forward(self, ids, numbers, mask):
        return super().forward(ids, mask) + (numbers ** 2).sum(1, keepdim=True)
"""
    )
    random = np.random.default_rng(2)
    ids = [random.integers(1, 30, n).tolist() for n in random.integers(1, 21, 20)]
    texts.write_table("rows.parquet", text_table(ids, u=random.normal(size=20)), row_group_size=6)
    numbers = {"name": "numbers", "columns": ["u"], "baseline": {"kind": "mean"}}
    found = texts.rows(
        texts.run(**text_fields(texts, model=texts.model(name="Beside"), inputs=[TOKENS, numbers]))
    )
    u = texts.rows_of("rows.parquet")["u"]
    np.testing.assert_allclose(found["attr.u"], u**2 - u.mean() ** 2, rtol=1e-9, atol=1e-12)


# --- categories --------------------------------------------------------------------------------


def table_rows(count: int = 30) -> dict[str, Any]:
    random = np.random.default_rng(3)
    return {
        "id": np.arange(count),
        "age": random.normal(size=count),
        "income": random.normal(size=count),
        "plan_code": random.integers(0, 4, count),
        "born": random.integers(0, 6, count),
        "lives": random.integers(0, 6, count),
    }


TABULAR = [
    {
        "name": "numbers",
        "columns": ["age", "income"],
        "baseline": {"kind": "constant", "value": 0.5},
    },
    {
        "name": "plan",
        "ids": "plan_code",
        "embedding": "plan",
        "baseline": {"kind": "constant", "value": 1},
    },
    {"name": "cities", "ids": ["born", "lives"], "embedding": "city"},
]


def test_categories_beside_numbers_end_to_end(texts: JobFolder):
    source = table_rows()
    texts.write_table("rows.parquet", pa.table(source))
    fields = text_fields(
        texts,
        model=texts.model(name="Tabular"),
        inputs=TABULAR,
        forward_args=[],
        target={"kind": "scalar"},
    )
    manifest = texts.run(**fields)
    found, net = texts.rows(manifest), model(texts, "Tabular")
    assert list(found.columns[-5:]) == [
        "attr.age",
        "attr.income",
        "attr.plan_code",
        "attr.born",
        "attr.lives",
    ]
    numbers = torch.from_numpy(np.stack([source["age"], source["income"]], 1))
    cities = net.city.weight[
        torch.from_numpy(np.stack([source["born"], source["lives"]], 1))
    ].flatten(1)
    x = torch.cat([numbers, net.plan.weight[torch.from_numpy(source["plan_code"])], cities], 1)
    baseline = torch.cat(
        [torch.full((1, 2), 0.5), net.plan.weight[[1]], torch.zeros(1, 4)], 1
    ).double()
    plain = attribute(net.net, x, baselines=baseline, accuracy=FixedSteps(steps=16))
    credits = plain.attributions
    expected = torch.cat(
        [credits[:, :2], *(p.sum(1, keepdim=True) for p in credits[:, 2:].split([3, 2, 2], 1))], 1
    )
    np.testing.assert_allclose(found.iloc[:, -5:], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["f_baseline"], plain.f_baseline, rtol=1e-12)
    assert (found.loc[source["plan_code"] == 1, "attr.plan_code"] == 0).all()
    assert manifest.complete


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        (None, pa.int64(), "plan_code is null"),
        (-1, pa.int64(), "plan_code is -1: expected an id, an integer from 0"),
        (1.5, pa.float64(), "plan_code is 1.5: expected an id, an integer from 0"),
        (4, pa.int64(), "plan holds 4: expected ids from 0 to 3 at `plan`"),
    ],
)
def test_a_bad_category_is_a_bad_row(texts: JobFolder, value: Any, kind: pa.DataType, reason: str):
    source = table_rows(6)
    codes = pa.array([*source["plan_code"][:5].tolist(), value], kind)
    texts.write_table("rows.parquet", pa.table(source | {"plan_code": codes}))
    found = texts.rows(
        texts.run(
            **text_fields(
                texts,
                model=texts.model(name="Tabular"),
                inputs=TABULAR,
                forward_args=[],
                target={"kind": "scalar"},
            )
        )
    )
    assert found["status"].tolist() == [*["unchecked"] * 5, "bad_input"]
    assert found["reason"].notna().tolist() == [*[False] * 5, True]
    assert found["reason"][5] == reason


def test_an_id_that_only_the_model_minds_fails_alone(texts: JobFolder):
    """Positions end at 24, which no nn.Embedding among the named modules tells."""
    texts.write_table("rows.parquet", text_table([[1, 2], list(range(1, 26)), [3]]))
    found = texts.rows(texts.run(**text_fields(texts, inputs=[TOKENS | {"max_length": 32}])))
    assert found["status"].tolist() == ["unchecked", "failed", "unchecked"]
    assert "IndexError" in found["reason"][1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": [TOKENS | {"embedding": "word"}]}, "did you mean `words`"),
        ({"inputs": [TOKENS | {"embedding": "norm.weight"}]}, "no module of this name"),
        ({"inputs": [TOKENS | {"embedding": "last"}]}, "one vector for each id"),
        (
            {"inputs": [TOKENS | {"baseline": {"kind": "constant", "value": 30}}]},
            "baseline of input `tokens`",
        ),
        (
            {"inputs": [TOKENS, {"name": "ids", "columns": ["id"]}], "source": {"uri": "data"}},
            "a forward pass over real rows",
        ),
        ({"inputs": [TOKENS | {"name": "id"}, {"name": "n", "columns": ["id"]}]}, "attr.id twice"),
        ({"inputs": [TOKENS | {"ids": ["ids"], "pad": None}]}, "a numeric column"),
    ],
)
def test_a_job_of_ids_that_cannot_work_is_refused(
    texts: JobFolder, changes: dict[str, Any], message: str
):
    named = changes["inputs"][0]["name"]
    with pytest.raises(SpecError) as caught:
        texts.plan(**text_fields(texts, forward_args=[MASK | {"mask_of": named}]) | changes)
    assert message in str(caught.value)


# --- repeated rows -----------------------------------------------------------------------------


def test_equal_rows_are_computed_once_and_say_so(texts: JobFolder):
    source = texts.rows_of("rows.parquet")["ids"].tolist()[:10]
    texts.write_table("rows.parquet", text_table(source))
    alone = texts.rows(texts.run(**text_fields(texts, target={"kind": "all"})))
    texts.write_table("rows.parquet", text_table([*source, None, *reversed(source), source[0]]))
    fields = text_fields(
        texts, target={"kind": "all"}, compute={"shard_rows": 100, "precision": "float64"}
    )
    manifest = texts.run(**fields)
    assert [f.duplicates for f in footers(texts, manifest)] == [11]
    found = texts.rows(manifest)
    order = [*range(10), *reversed(range(10)), 0]
    again = found[found["row_id"] != 10].reset_index(drop=True)
    expected = pd.concat([alone[alone["row_id"] == i] for i in order], ignore_index=True)
    pd.testing.assert_frame_equal(
        again.drop(columns="row_id"), expected.drop(columns="row_id"), check_exact=True
    )
    assert found[found["row_id"] == 10]["status"].tolist() == ["bad_input"] * 3


def test_rows_that_differ_in_anything_are_not_equal(job: JobFolder):
    """Target, argument and a row's own baseline count; so does the sign of zero."""
    (job.path / f"{job.module}.py").write_text(
        MODELS
        + """
class Scaled(nn.Module):
    def forward(self, x, scale):
        return torch.stack([x.square().sum(1), x.exp().sum(1)], 1) * scale[:, None]
"""
    )
    rows = [
        (1.0, 0, 1, 0.0),
        (1.0, 0, 1, 0.0),
        (1.0, 1, 1, 0.0),
        (1.0, 0, 2, 0.0),
        (1.0, 0, 1, 0.5),
        (0.0, 0, 1, 1.0),
        (-0.0, 0, 1, 1.0),
    ]
    x, label, scale, start = zip(*rows, strict=True)
    job.write_table(
        "rows.parquet",
        pa.table({"id": range(7), "x": x, "label": label, "scale": scale, "start": start}),
    )
    manifest = job.run(
        model=job.model(name="Scaled"),
        inputs=[{"name": "x", "columns": ["x"]}],
        forward_args=[{"name": "scale", "column": "scale", "dtype": "int64"}],
        target={"kind": "column", "column": "label"},
        baseline={"kind": "column", "columns": ["start"]},
    )
    assert [f.duplicates for f in footers(job, manifest)] == [1]
    np.testing.assert_allclose(
        job.rows(manifest)["attr.x"], [1, 1, np.e - 1, 2, 0.75, -1, -1], rtol=1e-5
    )


# --- outputs and arguments of other kinds ------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "target"),
    [
        ("return self.logits(x).reshape(-1, 1, 2)", {"kind": "index", "index": [0, 1]}),
        ("return self.logits(x).reshape(-1, 2, 1).mT", {"kind": "index", "index": [0, 1]}),
        ("return self.logits(x)[:, 1]", {"kind": "scalar"}),
        ("return self.logits(x)[:, 1:]", {"kind": "scalar"}),
    ],
)
def test_outputs_of_other_ranks(job: JobFolder, forward: str, target: dict[str, Any]):
    expected = job.rows(job.run(output={"uri": "plain"}), "plain")
    job.write_model(forward)
    found = job.rows(job.run(target=target))
    pd.testing.assert_frame_equal(found.drop(columns="target"), expected.drop(columns="target"))
    assert (
        found["target"].isna().all()
        if target["kind"] == "scalar"
        else set(found["target"]) == {"0,1"}
    )


def test_an_index_beyond_a_tensor_output_is_refused(job: JobFolder):
    job.write_model("return self.logits(x).reshape(-1, 1, 2)")
    with pytest.raises(SpecError, match=r"(?s)from 0, 0 to 0, 1.*seen: 1, 0"):
        job.plan(target={"kind": "index", "index": [1, 0]})


def test_arguments_of_every_type_reach_the_model(job: JobFolder):
    """f = scale · Σ mask · x² · 2^depth."""
    job.write_model(
        "mask, scale, depth = more\nassert (mask.dtype, scale.dtype, depth.dtype) == (torch.bool,"
        " torch.int64, torch.float32)\nreturn (x.square() * mask * 2 ** depth).sum(1) * scale"
    )
    mask, scale = np.arange(60).reshape(20, 3) % 2, np.arange(20)
    job.write_rows(mask=mask.tolist(), scale=scale, d0=np.ones(20), d1=np.zeros(20), d2=scale / 8)
    arguments = [
        {"name": "mask", "column": "mask", "shape": [3], "dtype": "bool"},
        {"name": "scale", "column": "scale", "dtype": "int64"},
        {"name": "depth", "columns": ["d0", "d1", "d2"]},
    ]
    found = job.rows(job.run(forward_args=arguments, target={"kind": "scalar"}))
    x = job.rows_of("rows.parquet")[["a", "b", "c"]].to_numpy()
    depth = np.stack([np.ones(20), np.zeros(20), scale / 8], 1)
    np.testing.assert_allclose(
        found[["attr.a", "attr.b", "attr.c"]], x**2 * mask * 2**depth * scale[:, None], rtol=1e-5
    )
