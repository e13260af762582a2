"""README is true: its generated parts are fresh, its spec parses, its Python runs, its picture is there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from integrand.schemas.specs import Rule, parse_spec
from integrand.schemas.tables import RowStatus
from integrand.service.specfile import parse_text

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


MODEL = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)).eval()
"""


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    """The output root after the README's own spec was run by the README's own command, on made-up applications."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_models.py").write_text(MODEL)
    (folder / "spec.yaml").write_text(blocks("yaml")[0])
    scope: dict[str, object] = {}
    exec(MODEL, scope)
    save_file(scope["build"]().state_dict(), folder / "model.safetensors")
    (folder / "data/applications").mkdir(parents=True)
    columns = {c: np.random.default_rng(i).normal(size=60) for i, c in enumerate(("age", "income", "tenure"))}
    pq.write_table(pa.table({"id": range(60), **columns}), folder / "data/applications/part-0.parquet")
    command = [sys.executable, "-m", "integrand.service.cli", "run", "spec.yaml", "--trust-model-code", "my_models"]
    subprocess.run([*command, "--pool", "local"], cwd=folder, check=True, capture_output=True)
    return folder / "attributions"


def load_reference():
    found = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("reference.py"))
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_generated_parts_are_fresh():
    assert load_reference().rendered(TEXT) == TEXT, "run `python tests/docs/reference.py`"


def test_every_part_of_a_spec_is_in_the_reference():
    from integrand.schemas import specs

    parts = {p for p in vars(specs).values() if isinstance(p, type) and issubclass(p, specs.Part)}
    public = {p for p in parts if not p.__name__.startswith("_") and p is not specs.Part}
    assert public == {part for _, part in load_reference().SECTIONS}


def test_example_spec_parses():
    (example,) = blocks("yaml")
    assert len(example.strip().splitlines()) == 10
    assert parse_spec(parse_text(example, "README")).name == "credit-default"


def test_notebook_example_runs():
    (example,) = [b for b in blocks("python") if "attribute(model" in b]
    scope: dict[str, object] = {}
    exec(compile(example, "README", "exec"), scope)
    assert scope["result"].attributions.shape == (8, 4)


def test_query_example_runs(finished_run):
    example = next(b for b in blocks("python") if "open_run(" in b)
    scope: dict[str, object] = {}
    exec(compile(example.replace('"attributions"', repr(str(finished_run))), "README", "exec"), scope)
    assert scope["run"].complete


@pytest.mark.parametrize("status", list(RowStatus))
def test_every_status_is_explained(status):
    assert f"| `{status}` |" in TEXT


def test_every_rule_is_named():
    assert all(f"`{rule}`" in TEXT for rule in Rule.__args__)


def test_pictures_exist():
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT):
        assert (ROOT / target).is_file(), target


def test_operator_config_example_is_accepted(tmp_path):
    from integrand.service.operator import load_operator

    (example,) = blocks("toml")
    config = tmp_path / "config.toml"
    config.write_text(example)
    assert load_operator(str(config), []).trusted == ("my_models",)
