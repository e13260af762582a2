"""A spec parses to a frozen value; whatever is wrong with it is named, with the nearest thing that
is right.
"""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.schemas.specs.baselines import (
    ColumnBaseline,
    ConstantBaseline,
    MeanBaseline,
    ZeroBaseline,
)
from integrand.schemas.specs.compute import WorkerRange
from integrand.schemas.specs.inputs import ColumnsInput, TensorInput
from integrand.schemas.specs.job import AttributeSpec, parse_spec, published_schema
from integrand.schemas.specs.models import ExportedModel, FactoryModel, ScriptedModel
from integrand.schemas.specs.targets import (
    AllTargets,
    ArgmaxTarget,
    ColumnTarget,
    IndexTarget,
    ScalarTarget,
)

DESIGN: dict[str, Any] = {
    "kind": "attribute",
    "name": "credit-default",
    "source": {"uri": "s3://bucket/table/", "row_id": "id"},
    "model": {
        "kind": "factory",
        "entrypoint": "my_models:build",
        "weights": "s3://bucket/model.safetensors",
        "code": ["s3://bucket/my_models.whl"],
    },
    "inputs": [{"name": "features", "columns": ["age", "income", "tenure"]}],
    "target": {"kind": "index", "index": 0},
    "baseline": {"kind": "zero"},
    "accuracy": {"kind": "adaptive", "tolerance": 1.0e-2, "max_evaluations": 512},
    "output": {"uri": "s3://bucket/attributions"},
    "compute": {"workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 0, "shard_rows": "auto"},
}
IMAGE = {"name": "image", "column": "pixels", "shape": [1, 28, 28]}

# Every choice of the spec that is built so far: the field, what the user writes, and the part that
# it becomes.
CHOICES: list[tuple[str, Any, type]] = [
    (
        "model",
        {"kind": "factory", "entrypoint": "a.b.c:make", "arguments": {"width": 3, "name": "x"}},
        FactoryModel,
    ),
    ("model", {"kind": "torch_export", "uri": "model.pt2"}, ExportedModel),
    ("model", {"kind": "torchscript", "uri": "model.pt"}, ScriptedModel),
    ("target", {"kind": "scalar"}, ScalarTarget),
    ("target", {"kind": "index", "index": [1, 0], "transform": "softmax"}, IndexTarget),
    ("target", {"kind": "column", "column": "label"}, ColumnTarget),
    ("target", {"kind": "argmax"}, ArgmaxTarget),
    ("target", {"kind": "all", "transform": "log_softmax"}, AllTargets),
    ("baseline", {"kind": "zero"}, ZeroBaseline),
    ("baseline", {"kind": "constant", "value": 0.5}, ConstantBaseline),
    ("baseline", {"kind": "constant", "value": [1, 2, 3], "units": "raw"}, ConstantBaseline),
    ("baseline", {"kind": "column", "columns": ["age0", "income0", "tenure0"]}, ColumnBaseline),
    ("baseline", {"kind": "mean"}, MeanBaseline),
    ("accuracy", {"kind": "adaptive"}, Adaptive),
    *[
        ("accuracy", {"kind": "fixed", "rule": rule, "steps": 50}, FixedSteps)
        for rule in ("left", "right", "midpoint", "trapezoid", "endpoints_mean", "gauss_legendre")
    ],
]


def spec(**changes: Any) -> dict[str, Any]:
    return DESIGN | changes


def refusal(fields: object) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(fields, where="job.yaml")
    assert caught.value.where == "job.yaml"
    return caught.value.seen


def test_the_example_of_the_design_parses():
    parsed = parse_spec(DESIGN)
    assert parsed.source.uris == ("s3://bucket/table/",)
    assert isinstance(parsed.inputs[0], ColumnsInput)
    assert parsed.inputs[0].columns == ("age", "income", "tenure")
    assert parsed.accuracy == Adaptive(tolerance=1e-2, max_evaluations=512)
    assert parsed.compute.worker_range == WorkerRange(min=2, max=2)


def test_defaults_fill_the_rest():
    parsed = parse_spec(
        {k: DESIGN[k] for k in ("kind", "name", "source", "model", "inputs", "output")}
    )
    assert (parsed.target.kind, parsed.baseline.kind, parsed.accuracy) == (
        "scalar",
        "zero",
        Adaptive(),
    )
    assert (
        parsed.compute.worker_range.max,
        parsed.compute.shard_rows,
        parsed.compute.batch_rows,
    ) == (
        1,
        "auto",
        "auto",
    )


@pytest.mark.parametrize(
    ("field", "value", "kind"), CHOICES, ids=lambda v: v.get("kind") if isinstance(v, dict) else ""
)
def test_every_choice_parses_to_its_part(field: str, value: dict[str, Any], kind: type):
    parsed = parse_spec(spec(**{field: value}))
    assert isinstance(getattr(parsed, field), kind)
    jsonschema.validate(spec(**{field: value}), published_schema())


def test_an_image_input_and_several_inputs():
    parsed = parse_spec(
        spec(
            inputs=[
                IMAGE | {"divide": 255, "mean": [0.5], "baseline": {"kind": "mean"}},
                {"name": "rest", "columns": ["a"]},
            ],
            forward_args=[{"name": "mask", "column": "mask", "shape": [4], "dtype": "bool"}],
        )
    )
    assert isinstance(parsed.inputs[0], TensorInput)
    assert parsed.inputs[0].shape == (1, 28, 28)
    assert parsed.baselines == (MeanBaseline(), ZeroBaseline())
    assert parsed.forward_args[0].dtype == "bool"


IDS = {"name": "tokens", "ids": "ids", "embedding": "encoder.words"}


def test_an_input_of_ids_and_its_mask():
    job = spec(
        inputs=[
            IDS | {"pad": 0, "baseline": {"kind": "constant", "value": 3}},
            {"name": "n", "columns": ["a"]},
            {"name": "codes", "ids": ["b", "c"], "embedding": ["b", "c"]},
        ],
        forward_args=[{"name": "mask", "mask_of": "tokens", "dtype": "int64"}],
    )
    parsed = parse_spec(job)
    assert [i.name for i in parsed.ids_inputs] == ["tokens", "codes"]
    assert [(i.modules, i.baseline_id) for i in parsed.ids_inputs] == [
        (("encoder.words",), 3),
        (("b", "c"), None),
    ]
    assert AttributeSpec.model_validate_json(parsed.model_dump_json()) == parsed
    jsonschema.validate(job, published_schema())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"inputs": [IDS | {"embeding": "x"}]},
            "inputs.0.embeding: unknown field; did you mean `embedding`?",
        ),
        ({"inputs": [IDS | {"pad": -1}]}, "inputs.0.pad: "),
        ({"inputs": [IDS | {"ids": ["a", "a"]}]}, "columns named twice: a"),
        ({"inputs": [IDS | {"ids": []}]}, "`ids` names no column"),
        ({"inputs": [IDS | {"ids": ["a", "b"], "embedding": ["x"]}]}, "1 modules for 2 columns"),
        ({"inputs": [IDS | {"ids": ["a"], "pad": 0}]}, "`pad` is for a column of lists"),
        (
            {"inputs": [IDS | {"baseline": {"kind": "mean"}}]},
            "inputs.0.baseline: unknown kind `mean`",
        ),
        (
            {"inputs": [IDS | {"baseline": {"kind": "constant", "value": 0.5}}]},
            "the baseline of ids is an id",
        ),
        (
            {"inputs": [IDS | {"baseline": {"kind": "constant", "value": [1, 2]}}]},
            "the baseline of ids is an id",
        ),
        (
            {"inputs": [IDS], "baseline": {"kind": "mean"}},
            "says nothing about ids: give tokens its own",
        ),
        (
            {"inputs": [IDS, IDS | {"name": "more"}]},
            "one embedding for several inputs: encoder.words",
        ),
        (
            {"inputs": [IDS], "model": {"kind": "torchscript", "uri": "m.pt"}},
            "torchscript hides its modules",
        ),
        (
            {"forward_args": [{"name": "mask", "mask_of": "features"}]},
            "names no input of ids: features",
        ),
        (
            {"inputs": [IDS], "forward_args": [{"name": "m", "mask_of": "tokens", "column": "c"}]},
            "give one of",
        ),
        (
            {"inputs": [IDS], "forward_args": [{"name": "m", "mask_of": "tokens", "shape": [3]}]},
            "leave out `shape`",
        ),
        ({"inputs": [IDS | {"ids": ["age"]}, DESIGN["inputs"][0]]}, "clash: attr.age"),
    ],
)
def test_an_input_of_ids_that_cannot_work_is_refused(change: dict[str, Any], message: str):
    assert message in refusal(spec(**change))


def test_workers_are_a_number_or_a_range():
    assert parse_spec(
        spec(compute={"workers": {"min": 1, "max": 4}})
    ).compute.worker_range == WorkerRange(min=1, max=4)
    assert "workers.min is above workers.max" in refusal(
        spec(compute={"workers": {"min": 4, "max": 1}})
    )


def test_a_spec_is_frozen_and_survives_json():
    parsed = parse_spec(DESIGN)
    with pytest.raises(ValidationError, match="frozen"):
        parsed.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        parsed.compute.workers = 3  # type: ignore[misc]
    assert AttributeSpec.model_validate_json(parsed.model_dump_json()) == parsed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sauce": {}}, "sauce: unknown field; did you mean `source`?"),
        (
            {"source": {"uri": "x", "rowid": "id"}},
            "source.rowid: unknown field; did you mean `row_id`?",
        ),
        (
            {"model": DESIGN["model"] | {"wieghts": "x"}},
            "model.wieghts: unknown field; did you mean `weights`?",
        ),
        (
            {"inputs": [DESIGN["inputs"][0] | {"devide": 2}]},
            "inputs.0.devide: unknown field; did you mean `divide`?",
        ),
        (
            {"inputs": [IMAGE | {"shap": [1]}]},
            "inputs.0.shap: unknown field; did you mean `shape`?",
        ),
        (
            {"accuracy": {"kind": "adaptive", "tolerence": 1}},
            "accuracy.tolerence: unknown field; did you mean `tolerance`?",
        ),
        ({"accuracy": {"kind": "fixed", "tolerance": 0.1}}, "accuracy.tolerance: unknown field"),
        ({"compute": {"worker": 2}}, "compute.worker: unknown field; did you mean `workers`?"),
        (
            {"compute": {"workers": {"mim": 1, "max": 2}}},
            "compute.workers.mim: unknown field; did you mean `min`?",
        ),
        ({"output": {"url": "x", "uri": "x"}}, "output.url: unknown field; did you mean `uri`?"),
        (
            {"limits": {"max_bad": 0.1}},
            "limits.max_bad: unknown field; did you mean `max_bad_share`?",
        ),
        ({"limits": {"zzz": 1}}, "limits.zzz: unknown field; known here: max_bad_share"),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest(change: dict[str, Any], message: str):
    assert message in refusal(spec(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": {"kind": "zeros"}}, "baseline: unknown kind `zeros`; did you mean `zero`?"),
        (
            {"model": {"kind": "torch-export"}},
            "model: unknown kind `torch-export`; did you mean `torch_export`?",
        ),
        ({"target": {"kind": "colum"}}, "target: unknown kind `colum`; did you mean `column`?"),
        (
            {"inputs": [IMAGE | {"baseline": {"kind": "men"}}]},
            "inputs.0.baseline: unknown kind `men`; did you mean `mean`?",
        ),
        ({"baseline": {}}, "baseline: needs `kind`: one of zero, constant, column, mean"),
        ({"accuracy": {"steps": 3}}, "accuracy: needs `kind`: one of fixed, adaptive"),
    ],
)
def test_an_unknown_kind_is_named_with_the_nearest(change: dict[str, Any], message: str):
    assert message in refusal(spec(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "audit"}, "kind: Input should be 'attribute'"),
        ({"name": "../up"}, "name: "),
        ({"inputs": []}, "inputs: "),
        (
            {"inputs": [{"name": "x"}]},
            "inputs.0: an input needs `columns: [...]`, `column: ...`, `ids: ...`, `image: ...` or"
            " `text: ...`",
        ),
        ({"inputs": [{"name": "x", "columns": ["a", "a"]}]}, "columns named twice: a"),
        (
            {"inputs": [{"name": "x", "columns": ["a"]}, {"name": "x", "columns": ["b"]}]},
            "share a name: x",
        ),
        (
            {"inputs": [{"name": "x", "columns": ["a"]}, {"name": "y", "columns": ["a"]}]},
            "clash: attr.a",
        ),
        ({"inputs": [{"name": "x", "columns": ["a"], "std": [1, 0]}]}, "must not be 0"),
        ({"model": {"kind": "factory", "entrypoint": "no_colon"}}, "model.entrypoint: "),
        ({"target": {"kind": "index", "index": -1}}, "target.index: "),
        ({"target": {"kind": "index", "index": []}}, "`index` names no output"),
        ({"accuracy": {"kind": "adaptive", "tolerance": 0}}, "accuracy.tolerance: "),
        ({"accuracy": {"kind": "adaptive", "tolerance": float("nan")}}, "accuracy.tolerance: "),
        ({"accuracy": {"kind": "fixed", "rule": "simpson"}}, "accuracy.rule: "),
        ({"compute": {"workers": 0}}, "compute.workers: "),
        ({"compute": {"batch_rows": "automatic"}}, "compute.batch_rows: "),
        ({"inputs": [IMAGE | {"mean": "x"}]}, "inputs.0.mean: "),
        (
            {"compute": {"shard_rows": 5, "shard_bytes": 5}},
            "give `shard_rows` or `shard_bytes`, not both",
        ),
        ({"baseline": {"kind": "column"}}, "give either `column` or `columns`"),
        ({"source": {}}, "source.uri: Field required"),
    ],
)
def test_a_bad_value_is_named_by_its_place(change: dict[str, Any], message: str):
    assert message in refusal(spec(**change))


def test_every_problem_is_told_at_once():
    seen = refusal(spec(sauce=1, compute={"worker": 2}) | {"name": ""})
    assert all(word in seen for word in ("sauce", "compute.worker", "name"))


@pytest.mark.parametrize("fields", [None, [], "kind: attribute", 3])
def test_a_spec_is_a_mapping(fields: object):
    assert refusal(fields) == type(fields).__name__


def test_the_published_schema_takes_good_specs_and_refuses_bad_ones():
    schema = json.loads(json.dumps(published_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(DESIGN, schema)
    jsonschema.validate(
        spec(inputs=[IMAGE], compute={"workers": {"min": 1, "max": 2}, "shard_rows": 100}), schema
    )
    for bad in (
        spec(sauce=1),
        spec(target={"kind": "index"}),
        spec(baseline={"kind": "zeros"}),
        spec(inputs=[]),
        spec(inputs=[{"name": "x"}]),
        spec(compute={"workers": "two"}),
        {},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


def test_every_published_field_is_described():
    definitions = published_schema()["$defs"].values()
    fields = [
        (d["title"], name, f) for d in definitions for name, f in d.get("properties", {}).items()
    ]
    assert len(fields) > 40
    assert [
        (title, name)
        for title, name, f in fields
        if "description" not in f and name not in ("kind", "baseline")
    ] == []


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ("saliency", "saliency"),
        ({"kind": "expected_gradients", "sampling": "iid"}, "expected_gradients"),
        ("captum:DeepLift", "captum"),
    ],
)
def test_a_method_is_a_part_or_its_name_and_survives_a_stored_plan(asked: Any, kind: str) -> None:
    spec = parse_spec(DESIGN | {"method": asked, "accuracy": {"kind": "adaptive"}})
    assert spec.method.kind == kind
    again = AttributeSpec.model_validate_json(spec.model_dump_json())
    assert again == spec


@pytest.mark.parametrize(
    ("method", "accuracy", "message"),
    [
        ("saliency", {"kind": "exact"}, "approximates nothing"),
        ("expected_gradients", {"kind": "exact"}, "adaptive or samples"),
        ("expected_gradients", {"kind": "fixed", "steps": 9}, "adaptive or samples"),
        ("integrated_gradients", {"kind": "samples"}, "adaptive or fixed or exact"),
        ({"kind": "smoothgrad", "sigma": 0}, None, "greater than 0"),
        ({"kind": "smoothgrad", "sigma": 1, "noise": 2}, None, "unknown field"),
        ("salliency", None, "did you mean `saliency`"),
    ],
)
def test_methods_and_accuracies_that_do_not_go_together_are_refused(
    method: Any, accuracy: Any, message: str
) -> None:
    fields = DESIGN | {"method": method}
    fields["accuracy"] = accuracy or {"kind": "adaptive"}
    with pytest.raises(SpecError, match=message):
        parse_spec(fields)
