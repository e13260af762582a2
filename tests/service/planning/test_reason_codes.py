"""Reasons that a job cannot give are refused before any worker starts, in words that help."""

import pytest

from integrand.schemas.errors import SpecError
from integrand.schemas.records import InputShape
from integrand.schemas.specs.job import parse_spec
from integrand.service.planning.reason_codes import check_reasons

SHAPES = (InputShape(name="features", columns=("a", "b", "c"), shape=(3,), named=True),)
HEADER = "feature_or_group,code,text\n"
CODES = HEADER + 'a,A,"first, of three"\nb,B,second\nc,C,\n'


def planned(job, codes: str | bytes | None = None, **fields):
    asked = {"toward": "lower"} | fields
    if codes is not None:
        text = codes.encode() if isinstance(codes, str) else codes
        (job.path / "codes.csv").write_bytes(text)
        asked["codes"] = "codes.csv"
    return job.plan(accuracy={"kind": "adaptive"}, output={"uri": "out", "reasons": asked})


def test_a_file_of_codes_is_frozen_in_the_plan(job):
    plan = planned(job, "﻿" + CODES)
    assert [(line.feature, line.code, line.text) for line in plan.reason_codes.lines] == [
        ("a", "A", "first, of three"),
        ("b", "B", "second"),
        ("c", "C", ""),
    ]
    assert plan.spec.output.reasons.codes == str(job.path / "codes.csv")


@pytest.mark.parametrize(
    ("codes", "fields", "told"),
    [
        (None, {"k": 0}, "output.reasons.k"),
        (None, {"toward": "up"}, "output.reasons.toward"),
        (None, {"exclude": ["aa"]}, "did you mean `a`?"),
        (None, {"prohibited": ["age"]}, "output.reasons.prohibited"),
        (None, {"exclude": ["a"], "prohibited": ["a"]}, "excluded and prohibited at once: a"),
        (None, {"exclude": ["a", "a"]}, "twice: a"),
        (None, {"exclude": ["a", "b", "c"]}, "all excluded"),
        (None, {"when": "score < 1"}, "output.reasons.when"),
        (None, {"when": "f_input < 1; drop table x"}, "output.reasons.when"),
        (None, {"when": "reasons_status = 'certified'"}, "output.reasons.when"),
        (None, {"when": "f_input < random()"}, "`random`"),
        (None, {"when": "now() > '2026-01-01'"}, "`now`"),
        (None, {"when": "f_input < 1 and Current_Timestamp is not null"}, "`current_timestamp`"),
        ("", {}, "the first line feature_or_group,code,text"),
        ("feature,code,text\n", {}, "the first line feature_or_group,code,text"),
        (b"\xff\xfe", {}, "CSV in UTF-8"),
        (CODES + "d,D,more\n", {}, "`d`"),
        (CODES + "a,A,again\n", {}, "`a` again in line 5"),
        (HEADER + "a,A\n", {}, "in line 2"),
        (HEADER + "a,,text\n", {}, "in line 2"),
        (HEADER + "a,A,one\nb,A,other\n", {}, "one text for each code"),
        (HEADER + "a,A,one\n", {}, "none for `b`, `c`"),
        (HEADER + "a,A,one\n", {"exclude": ["b"]}, "none for `c`"),
        (CODES, {"prohibited": ["c"]}, "a line for `c`"),
    ],
)
def test_reasons_that_cannot_be_given(job, codes, fields, told):
    with pytest.raises(SpecError) as refused:
        planned(job, codes, **fields)
    assert told in str(refused.value)
    assert not list(job.path.glob("out/*/data/*"))


def test_a_file_that_is_not_there(job):
    asked = {"uri": "out", "reasons": {"toward": "lower", "codes": "nowhere.csv"}}
    with pytest.raises(SpecError, match="nothing at"):
        job.plan(output=asked)


def test_words_within_quotes_are_no_calls(job):
    when = """status <> 'random()' and abs(gap) < 1 and "attr.a" < 1"""
    reasons = planned(job, when=when).spec.output.reasons
    assert reasons is not None
    assert reasons.when == when


@pytest.mark.parametrize(
    ("codes", "fields", "told"),
    [
        (HEADER + "ab,AB,both\nb,B,two\nc,C,three\n", {}, "both for `b`"),
        (HEADER + "ab,AB,both\n", {}, "none for `c`"),
        (HEADER + "ab,AB,both\nc,C,three\n", {"prohibited": ["b"]}, "a line for `b`"),
        (None, {"prohibited": ["abc"]}, "did you mean `ab`?"),
        (None, {"exclude": ["ab", "c"]}, "all excluded"),
    ],
)
def test_a_group_stands_for_its_features(job, codes, fields, told):
    asked = {"toward": "lower"} | fields
    if codes is not None:
        (job.path / "codes.csv").write_text(codes)
        asked["codes"] = "codes.csv"
    output = {"uri": "out", "reasons": asked, "groups": {"ab": ["a", "b"]}, "with_features": True}
    with pytest.raises(SpecError) as caught:
        job.plan(accuracy={"kind": "adaptive"}, output=output)
    assert told in str(caught.value)


def test_features_without_a_line_may_be_excluded_or_prohibited(job):
    plan = planned(job, HEADER + "a,A,one\n", exclude=["b"], prohibited=["c"])
    assert len(plan.reason_codes.lines) == 1


def test_inputs_without_names_have_no_reasons(job):
    table = job.rows_of("rows.parquet")
    table["all"] = table[["a", "b", "c"]].to_numpy().tolist()
    table.to_parquet(job.path / "data/rows.parquet")
    asked = {"uri": "out", "reasons": {"toward": "lower"}}
    with pytest.raises(SpecError, match="input `x`, whose attributions are one list"):
        job.plan(inputs=[{"name": "x", "column": "all", "shape": [3]}], output=asked)


@pytest.mark.parametrize(
    ("method", "signed"),
    [
        ("saliency", False),
        ({"kind": "saliency", "absolute": False}, False),
        ({"kind": "smoothgrad", "sigma": 1.0}, False),
        ({"kind": "smoothgrad", "sigma": 1.0, "times_input": True}, True),
        ("input_x_gradient", True),
    ],
)
def test_a_method_without_sign_has_no_reasons(job, method, signed):
    fields = job.fields(method=method, output={"uri": "out", "reasons": {"toward": "lower"}})
    del fields["accuracy"]
    spec = parse_spec(fields)
    if signed:
        check_reasons(spec, SHAPES, None)
        return
    with pytest.raises(SpecError, match="magnitudes alone, or slopes"):
        check_reasons(spec, SHAPES, None)


def test_what_changes_reasons_makes_another_run_and_where_codes_lie_does_not(job):
    plain = job.plan(accuracy={"kind": "adaptive"})
    one = planned(job, CODES)
    assert plain.run_id != one.run_id != planned(job).run_id
    assert planned(job, CODES, k=3).run_id != one.run_id
    (job.path / "elsewhere.csv").write_text(CODES)
    asked = {"toward": "lower", "codes": "elsewhere.csv"}
    moved = job.plan(accuracy={"kind": "adaptive"}, output={"uri": "out", "reasons": asked})
    assert moved.run_id == one.run_id
