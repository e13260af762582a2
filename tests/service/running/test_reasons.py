"""Reasons of a whole job: in every row that asks for them, whatever the shards."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from integrand.service import open_run, verify_run
from integrand.service.reports.rows import show_row
from integrand.service.running.jobs import limits_exceeded

ADAPTIVE = {"kind": "adaptive", "tolerance": 1e-3}
CODES = "feature_or_group,code,text\na,AB,first two\nb,AB,first two\nc,C,third\n"


TABLE = """
import torch
from torch import nn

class Table(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.plan, self.city = nn.Embedding(4, 3), nn.Embedding(6, 2)
        self.net = nn.Sequential(nn.Linear(10, 16), nn.GELU(), nn.Linear(16, 1))

    def forward(self, amounts, plan, places):
        return self.net(torch.cat([amounts, self.plan(plan), self.city(places).flatten(1)], 1))

def build():
    return Table().eval()
"""


def reasons(**fields):
    return {"uri": "out", "reasons": {"toward": "lower", "k": 2} | fields}


def as_lists(frame: pd.DataFrame) -> list[list[dict] | None]:
    return [None if own is None else list(own) for own in frame["reasons"]]


def test_reasons_are_the_largest_that_push_the_way_asked_for(job):
    manifest = job.run(accuracy=ADAPTIVE, output=reasons())
    frame, source = job.rows(manifest), job.rows_of("rows.parquet")
    assert frame.columns[-2:].tolist() == ["reasons", "reasons_status"]
    for i, row in frame.iterrows():
        pushes = {name: -row[f"attr.{name}"] for name in "abc"}
        largest = sorted((n for n in pushes if pushes[n] > 0), key=pushes.get, reverse=True)[:2]
        own = row["reasons"]
        assert [one["feature"] for one in own] == largest
        assert [one["contribution"] for one in own] == [row[f"attr.{n}"] for n in largest]
        assert [np.float32(one["value"]) for one in own] == [source[n][i] for n in largest]
        total = sum(push for push in pushes.values() if push > 0)
        assert [one["share"] for one in own] == pytest.approx([pushes[n] / total for n in largest])
        assert [one["rank"] for one in own] == list(range(1, len(own) + 1))
        assert all(one["text"] is None and one["code"] == one["feature"] for one in own)
    assert set(frame["reasons_status"]) <= {"certified", "none_toward", "order_uncertain"}
    assert (frame["reasons_status"] == "certified").sum() > 10


def test_codes_are_added_up_and_frozen_in_the_plan(job):
    (job.path / "codes.csv").write_text(CODES)
    output = reasons(codes="codes.csv", k=1)
    plan = job.plan(accuracy=ADAPTIVE, output=output)
    assert [line.code for line in plan.reason_codes.lines] == ["AB", "AB", "C"]
    frame = job.rows(job.run(accuracy=ADAPTIVE, output=output))
    for _, row in frame.iterrows():
        sums = {"AB": row["attr.a"] + row["attr.b"], "C": row["attr.c"]}
        least = min(sums, key=sums.get)
        expected = [(least, pytest.approx(sums[least]))] if sums[least] < 0 else []
        assert [(one["code"], one["contribution"]) for one in row["reasons"]] == expected
        assert {one["text"] for one in row["reasons"]} <= {"first two", "third"}
    (job.path / "codes.csv").write_text(CODES.replace("third", "another"))
    assert job.plan(accuracy=ADAPTIVE, output=output).run_id != plan.run_id


GROUPED = {"groups": {"ab": ["a", "b"]}, "with_features": True}


@pytest.mark.parametrize("until", ["tolerance", "reasons"])
def test_a_code_may_name_a_group(job, until):
    (job.path / "codes.csv").write_text("feature_or_group,code,text\nab,AB,both\nc,C,third\n")
    accuracy = ADAPTIVE | {"until": until}
    frame = job.rows(job.run(accuracy=accuracy, output=reasons(codes="codes.csv", k=1) | GROUPED))
    for _, row in frame.iterrows():
        sums = {"AB": row["group.ab"], "C": row["attr.c"]}
        least = min(sums, key=sums.get)
        expected = [(least, pytest.approx(sums[least]))] if sums[least] < 0 else []
        assert [(one["code"], one["contribution"]) for one in row["reasons"]] == expected
        assert all(one["feature"] in "abc" for one in row["reasons"])
    assert (frame["reasons_status"] == "certified").sum() > 10


def test_a_group_may_be_prohibited_or_excluded(job):
    manifest = job.run(accuracy=ADAPTIVE, output=reasons(k=1, prohibited=["ab"]) | GROUPED)
    for _, row in job.rows(manifest).iterrows():
        largest = min(row[f"attr.{name}"] for name in "abc")
        assert (row["reasons_status"] == "prohibited") == (largest < min(0, row["attr.c"]))
    assert manifest.reasons["prohibited"] > 0
    frame = job.rows(job.run(accuracy=ADAPTIVE, output=reasons(exclude=["ab"]) | GROUPED))
    assert {one["feature"] for given in frame["reasons"] for one in given} == {"c"}


def test_when_chooses_rows_and_bad_ones_have_none(job):
    table = job.rows_of("rows.parquet")
    table.loc[3, "a"] = np.nan
    table.to_parquet(job.path / "data/rows.parquet")
    manifest = job.run(accuracy=ADAPTIVE, output=reasons(when='f_input < 0 and "attr.a" < 9'))
    frame = job.rows(manifest)
    asked = (frame["f_input"] < 0).to_numpy()
    assert 0 < asked.sum() < 19
    assert frame["reasons"].notna().tolist() == asked.tolist()
    assert frame["reasons_status"].notna().tolist() == asked.tolist()


def test_reasons_do_not_depend_on_shards_or_neighbours(job):
    output = reasons(when="f_input < 0.3")
    whole = job.rows(job.run(accuracy=ADAPTIVE, output=output))
    compute = {"shard_rows": 3, "batch_rows": 16}
    cut = job.rows(
        job.run(accuracy=ADAPTIVE, output=output | {"uri": "cut"}, compute=compute), "cut"
    )
    assert as_lists(whole) == as_lists(cut)
    assert whole["reasons_status"].tolist() == cut["reasons_status"].tolist()


def test_every_target_has_its_own(job):
    output = reasons(toward="higher")
    manifest = job.run(accuracy=ADAPTIVE, output=output, target={"kind": "all"})
    frame = job.rows(manifest)
    assert len(frame) == 40
    for _, row in frame.iterrows():
        contributions = [row[f"attr.{one['feature']}"] for one in row["reasons"]]
        assert contributions == sorted(contributions, reverse=True)
        assert all(c > 0 for c in contributions)


def test_a_run_with_reasons_holds_against_itself(job):
    manifest = job.run(accuracy=ADAPTIVE, output=reasons())
    found = verify_run(str(job.run_uri(manifest)), trusted=(job.module,))
    assert found.findings == ()
    assert found.bitwise == 16


def test_a_feature_at_its_baseline_leaves_nothing_uncertain(job):
    """Two of three features push, the third is not there: with k = 3 the two are all."""
    job.write_rows(a=np.zeros(20, np.float32))
    frame = job.rows(job.run(accuracy=ADAPTIVE, output=reasons(k=3)))
    both = [len(r) == 2 for r in frame["reasons"]]
    assert (frame["reasons_status"][both] == "certified").all()
    assert any(both)


def test_rows_without_an_estimate_are_uncertain_and_the_plan_says_so(job):
    plan = job.plan(output=reasons())
    assert any("order_uncertain" in warning for warning in plan.warnings)
    assert set(job.rows(job.run(output=reasons()))["reasons_status"]) == {"order_uncertain"}


def test_pandas_reads_lists(job):
    job.run(accuracy=ADAPTIVE, output=reasons(k=1))
    frame = open_run(job.path / "out").to_pandas(columns=["row_id", "reasons"])
    assert frame["reasons"][0][0]["feature"] in "abc"


@pytest.mark.parametrize(("most", "code"), [(0, True), (None, False), (20, False)])
def test_prohibited_reasons_are_counted_and_held_against_a_limit(job, most, code):
    limits = {"max_prohibited": most}
    manifest = job.run(accuracy=ADAPTIVE, output=reasons(prohibited=["a"]), limits=limits)
    frame = job.rows(manifest)
    among = [any(one["feature"] == "a" for one in own) for own in frame["reasons"]]
    assert (frame["reasons_status"] == "prohibited").tolist() == among
    assert manifest.reasons["prohibited"] == sum(among) > 0
    assert sum(manifest.reasons.values()) == 20
    exceeded = limits_exceeded(job.spec(limits=limits), manifest)
    assert exceeded == ([f"limits.max_prohibited: {sum(among)} is above 0"] if code else [])


@pytest.mark.parametrize("kept", [{"store": {"kind": "top_k", "k": 1}}, {"dtype": "float16"}])
def test_reasons_are_those_of_all_that_was_computed(job, kept):
    """Whatever is stored of it; what `when` sees is what is stored."""
    asked = reasons(when="error_estimate < 1")
    whole = job.rows(job.run(accuracy=ADAPTIVE, output=asked))
    some = job.rows(job.run(accuracy=ADAPTIVE, output=asked | kept | {"uri": "some"}), "some")
    assert as_lists(whole) == as_lists(some)
    assert whole["reasons_status"].tolist() == some["reasons_status"].tolist()


def test_a_row_is_shown_with_its_reasons(job):
    job.run(accuracy=ADAPTIVE, output=reasons(when="row_id <> 4"))
    run, page = open_run(job.path / "out"), io.StringIO()
    show_row(Console(file=page, width=200), run, "3", 5)
    text = page.getvalue()
    assert "reasons_status" in text
    (row,) = run.rows(3)["reasons"]
    for one in row:
        assert one["value"] in text
    page = io.StringIO()
    show_row(Console(file=page, width=200), run, "4", 5)
    assert "separated" not in page.getvalue()


def test_whether_the_first_reason_hangs_on_the_baseline_is_told(job):
    baseline = {"kind": "gaussian", "sigma": 2.0, "clip": False, "draws": 4}
    asked = reasons(when="row_id <> 4")
    frame = job.rows(job.run(accuracy=ADAPTIVE, output=asked, baseline=baseline))
    agree = frame["reasons_agree"]
    assert np.isnan(agree[4])
    assert set(agree.drop(4)) <= {0, 0.25, 0.5, 0.75, 1}
    assert agree.nunique() > 1
    verified = verify_run(str(job.path / "out"), trusted=(job.module,))
    assert verified.findings == ()
    assert "reasons_agree" not in job.rows(job.run(accuracy=ADAPTIVE, output=asked))


def test_ids_are_features_with_values(job):
    random = np.random.default_rng(0)
    ids = {name: random.integers(0, 4, 20) for name in ("plan", "home", "work")}
    job.write_rows(**ids)
    (job.path / f"{job.module}.py").write_text(TABLE)
    inputs = [
        {"name": "amounts", "columns": ["a", "b", "c"]},
        {"name": "kind", "ids": "plan", "embedding": "plan"},
        {"name": "places", "ids": ["home", "work"], "embedding": "city"},
    ]
    job.run(
        inputs=inputs,
        target={"kind": "scalar"},
        accuracy={"kind": "adaptive", "tolerance": 1e-3},
        output={"uri": "out", "reasons": {"toward": "higher", "k": 6}},
    )
    frame = open_run(job.path / "out").to_pandas(inputs=True)
    seen = set()
    for _, row in frame.iterrows():
        for reason in row["reasons"]:
            name = reason["feature"]
            seen.add(name)
            assert reason["contribution"] == pytest.approx(row[f"attr.{name}"])
            if name in ids:
                assert reason["value"] == str(row[name])
    assert seen >= set(ids)
    assert (frame["reasons_status"] == "certified").mean() > 0.8


def test_a_shard_of_bad_rows_alone(job):
    job.write_rows(a=[0.5] * 10 + [float("nan")] * 10)
    frame = job.rows(job.run(accuracy=ADAPTIVE, output=reasons(when="f_input < 9")))
    assert frame["reasons"].notna().tolist() == [True] * 10 + [False] * 10
