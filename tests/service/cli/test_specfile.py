"""Spec files: YAML as people write it, JSON, and precise complaints about either."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Adaptive
from integrand.service.cli.specfile import load_spec, parse_text
from tests.plugins.jobs import JobFolder

YAML = """
kind: attribute
name: test
source: {uri: data}
model: {kind: factory, entrypoint: "my_models:build"}
inputs: [{name: features, columns: [a, b]}]
accuracy: {kind: adaptive, tolerance: 1e-3}
output: {uri: out}
"""


def write(folder: Path, text: str, name: str = "spec.yaml") -> Path:
    place = folder / name
    place.write_text(text)
    return place


def refusal(folder: Path, text: str, name: str = "spec.yaml") -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(write(folder, text, name))
    assert str(folder / name) in caught.value.where
    return caught.value.seen


def test_a_yaml_file_parses_and_paths_start_from_its_folder(tmp_path: Path):
    spec, base = load_spec(write(tmp_path, YAML))
    assert spec.accuracy == Adaptive(tolerance=1e-3)
    assert base == str(tmp_path)


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.e-3", "1.0e-3", "1.0e-03", "0.001", "+1e-3"])
def test_numbers_read_as_people_write_them(number: str):
    assert parse_text(f"x: {number}", "spec.yaml") == {"x": 0.001}


def test_words_that_look_like_numbers_stay_words():
    assert parse_text("x: [e3, 1e, a1e-3, '1e-3']", "spec.yaml") == {
        "x": ["e3", "1e", "a1e-3", "1e-3"]
    }


def test_a_json_file_parses(job: JobFolder):
    place = write(job.path, json.dumps(job.fields()), "spec.json")
    assert load_spec(place)[0] == job.spec()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (YAML + "name: again\n", "spec.yaml"),
        (YAML.replace("{uri: data}", "{uri: data, uri: other}"), "spec.yaml"),
        ('{"name": "a", "name": "b"}', "spec.json"),
        ('{"source": {"uri": "a", "uri": "b"}}', "spec.json"),
    ],
)
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str, name: str):
    assert "is given twice" in refusal(tmp_path, text, name)


def test_anchors_and_merges_work():
    assert parse_text("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", "spec.yaml") == {
        "a": {"b": 1, "c": 2},
        "d": {"b": 1, "c": 3},
    }


def test_broken_text_is_told_with_its_line(tmp_path: Path):
    assert "line 9" in refusal(tmp_path, YAML + "compute: {workers: 2")
    assert "line 2" in refusal(tmp_path, '{"a": 1,\n x}', "spec.json")


@pytest.mark.parametrize("text", ["", "- a", "just words", "3"])
def test_a_file_without_fields_is_refused(tmp_path: Path, text: str):
    with pytest.raises(SpecError, match="a mapping of fields"):
        load_spec(write(tmp_path, text))


def test_no_python_objects_are_built(tmp_path: Path):
    assert "constructor" in refusal(tmp_path, "x: !!python/object/apply:os.system ['true']")


def test_a_typo_names_the_file_and_the_nearest_field(tmp_path: Path):
    assert "did you mean `tolerance`?" in refusal(tmp_path, YAML.replace("tolerance", "tolerence"))


@pytest.mark.parametrize("name", ["spec.json", "spec.yaml"])
def test_a_file_that_nests_without_end_is_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(SpecError, match="valid YAML or JSON"):
        load_spec(tmp_path / name)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path):
    with pytest.raises(SpecError, match="No such file"):
        load_spec(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="readable YAML or JSON"):
        load_spec(tmp_path / "binary.yaml")


def test_a_relative_source_is_found_beside_the_spec(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir("/")
    spec, base = load_spec(job.write_spec())
    assert (spec, base) == (job.spec(), str(job.path))
    assert job.plan().rows == 20
