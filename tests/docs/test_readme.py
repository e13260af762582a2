"""The documentation is true: its generated parts are fresh, its specs parse, its Python runs, its
commands are understood.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from typer.main import get_command

from integrand.schemas.specs.job import parse_spec
from integrand.schemas.specs.part import Part, Rule
from integrand.schemas.tables import RowStatus
from integrand.service.cli.commands import app
from integrand.service.cli.specfile import parse_text
from integrand.service.cluster import Cluster
from integrand.service.operator import Operator
from integrand.service.running.jobs import run_job
from integrand.service.runs.query import open_run
from tests.plugins.strings import write_tokenizer

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", *(f"{d}/README.md" for d in ("schemas", "workers", "service", "tests")))
"""In the order in which they are read: later examples use names of earlier ones."""
TEXTS = {document: (ROOT / document).read_text(encoding="utf-8") for document in DOCUMENTS}


MODEL = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)).eval()
"""
IDS_MODELS = """
import torch
from torch import nn

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        words = nn.ModuleDict({"word_embeddings": nn.Embedding(200, 8)})
        self.bert = nn.ModuleDict({"embeddings": words})
        self.last = nn.Linear(8, 2)

    def forward(self, tokens, mask, types=0):
        words = self.bert["embeddings"]["word_embeddings"](tokens) * mask[..., None]
        return self.last(torch.tanh(words.sum(1) / mask.sum(1, keepdim=True)))

class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.plan, self.city = nn.Embedding(4, 3), nn.Embedding(6, 2)
        self.net = nn.Sequential(nn.Linear(9, 16), nn.GELU(), nn.Linear(16, 2))

    def forward(self, amounts, plan, places):
        return self.net(torch.cat([amounts, self.plan(plan), self.city(places).flatten(1)], 1))

def build(name):
    torch.manual_seed(0)
    return globals()[name]().eval()
"""


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    """The output root after README's own spec was run by README's own command, on made-up
    applications.
    """
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_models.py").write_text(MODEL)
    (folder / "spec.yaml").write_text(blocks("yaml")[0])
    scope: dict[str, object] = {}
    exec(MODEL, scope)
    save_file(scope["build"]().state_dict(), folder / "model.safetensors")
    (folder / "data/applications").mkdir(parents=True)
    columns = {
        c: np.random.default_rng(i).normal(size=60)
        for i, c in enumerate(("age", "income", "tenure"))
    }
    pq.write_table(
        pa.table({"id": range(60), **columns}), folder / "data/applications/part-0.parquet"
    )
    command = [
        sys.executable,
        "-m",
        "integrand.service.cli",
        "run",
        "spec.yaml",
        "--trust-model-code",
        "my_models",
    ]
    subprocess.run([*command, "--pool", "local"], cwd=folder, check=True, capture_output=True)
    return folder / "attributions"


def load_reference():
    found = importlib.util.spec_from_file_location(
        "reference", Path(__file__).with_name("reference.py")
    )
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def blocks(language: str) -> list[str]:
    """All blocks of code in a language, document by document."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [block for text in TEXTS.values() for block in fence.findall(text)]


def test_generated_parts_are_fresh():
    reference = load_reference()
    stale = [d for d in reference.GENERATED if reference.rendered(d) != TEXTS[d]]
    assert stale == [], "run `python tests/docs/reference.py`"


def test_the_landing_page_stays_one():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 200 and not line.startswith("|")] == []


def test_every_block_of_code_is_tried_here():
    """Each is in a language whose blocks are run, parsed or accepted below."""
    languages = {w for text in TEXTS.values() for w in re.findall(r"^```(\w+)$", text, re.M)}
    assert languages == {"bash", "python", "toml", "yaml"}
    assert len(blocks("yaml")) == 6
    assert [b for b in blocks("python") if "attribute(" not in b and "open_run(" not in b] == []


def test_every_part_of_a_spec_is_in_the_reference():
    """Parts that no other part is made of are what a user may write."""
    ours = {p for p in subclasses(Part) if p.__module__.startswith("integrand.")}
    parts = {p for p in ours if not ours.intersection(p.__subclasses__())}
    assert {p.__name__ for p in parts} == {p.__name__ for p in load_reference().sections().values()}


def subclasses(part: type[Part]) -> set[type[Part]]:
    return {part}.union(*(subclasses(below) for below in part.__subclasses__()))


def test_example_spec_parses():
    example = blocks("yaml")[0]
    assert len(example.strip().splitlines()) == 10
    assert parse_spec(parse_text(example, "README")).name == "credit-default"


def run_notebook(old: str = "", new: str = "") -> dict[str, object]:
    """Names after all notebook examples ran, one after the other; with `old` in their text changed
    to `new`.
    """
    text = "\n".join(b for b in blocks("python") if "attribute(" in b)
    assert old in text
    scope: dict[str, object] = {}
    torch.manual_seed(0)
    exec(compile(text.replace(old, new) if old else text, "README", "exec"), scope)
    return scope


def test_notebook_examples_run():
    scope = run_notebook()
    assert scope["result"].attributions.shape == (8, 4)
    assert scope["several"].attributions.shape == (8, 3, 4)
    assert scope["several"].gap.shape == (8, 3)
    assert scope["exact"].evaluations.tolist() == [0] * 8
    assert torch.allclose(
        scope["again"].attributions, scope["several"].attributions[:, 2], atol=1e-3
    )
    assert scope["found"].attributions.sum(-1).shape == (3, 5)
    assert set(scope["told"].status) == {RowStatus.ok}
    assert torch.equal(scope["values"], scope["told"].attributions)
    assert [a.tolist() for a in scope["integrated"]] == [[[1.5, -0.5]], [[1.5, -0.5]]]
    assert [a.tolist() for a in scope["layer_by_layer"]] == [[[1.5, -0.5]], [[2.0, -1.0]]]


def test_the_certificate_is_fooled_as_told():
    """By steps as wide as shown; ten times as wide they are seen."""
    fooled = run_notebook()["fooled"]
    assert (fooled.status[0], fooled.evaluations.tolist()) == (RowStatus.ok, [7])
    assert fooled.attributions.tolist() == [[1, 1]]
    assert float(fooled.error_estimate[0]) < 1e-3
    seen = run_notebook("/ 1e-3)", "/ 1e-2)")["fooled"]
    assert torch.allclose(seen.attributions, torch.tensor([[2.0, 0.0]]), atol=1e-2)
    single = run_notebook("+ up - down", "+ up")["fooled"]
    assert single.status[0] is RowStatus.not_converged


@pytest.mark.parametrize(
    ("example", "name", "columns"),
    [
        (1, "Text", ["attr.tokens"]),
        (2, "Table", ["attr.age", "attr.income", "attr.plan_id", "attr.home", "attr.work"]),
    ],
)
def test_examples_of_ids_run(tmp_path: Path, example: int, name: str, columns: list[str]):
    """In place of parts of the first example, as the text says."""
    (tmp_path / f"{name.lower()}_ids.py").write_text(IDS_MODELS)
    random = np.random.default_rng(0)
    numbers = {c: random.normal(size=24) for c in ("age", "income")}
    ids = {c: random.integers(0, 4, 24) for c in ("plan_id", "home", "work")}
    tokens = [random.integers(1, 200, n).tolist() for n in random.integers(1, 20, 24)]
    pq.write_table(
        pa.table({"id": range(24), "token_ids": tokens, **numbers, **ids}),
        tmp_path / "rows.parquet",
    )
    fields = parse_text(blocks("yaml")[0], "README") | parse_text(blocks("yaml")[example], "README")
    model = {
        "kind": "factory",
        "entrypoint": f"{name.lower()}_ids:build",
        "arguments": {"name": name},
        "code": [f"{name.lower()}_ids.py"],
    }
    spec = parse_spec(fields | {"source": {"uri": "rows.parquet", "row_id": "id"}, "model": model})
    manifest = run_job(
        spec,
        base=str(tmp_path),
        operator=Operator(trusted=(f"{name.lower()}_ids",)),
        cluster=Cluster("local"),
    )
    found = open_run(tmp_path / "attributions").to_pandas()
    assert manifest.complete
    assert [c for c in found.columns if c.startswith("attr.")] == columns
    assert found["status"].isin(["ok", "at_precision_floor"]).all()
    if name == "Text":
        assert [len(a) for a in found["attr.tokens"]] == [len(t) for t in tokens]


def test_example_of_strings_runs(tmp_path: Path):
    pytest.importorskip("tokenizers")
    (tmp_path / "text_ids.py").write_text(IDS_MODELS)
    write_tokenizer(tmp_path / "model")
    texts = pa.array(["this film is great", "unlikely plays", "  "], pa.string())
    pq.write_table(pa.table({"id": range(3), "review": texts}), tmp_path / "rows.parquet")
    fields = parse_text(blocks("yaml")[0], "README") | parse_text(blocks("yaml")[3], "README")
    model = {
        "kind": "factory",
        "entrypoint": "text_ids:build",
        "arguments": {"name": "Text"},
        "code": ["text_ids.py"],
    }
    spec = parse_spec(fields | {"source": {"uri": "rows.parquet", "row_id": "id"}, "model": model})
    run_job(
        spec,
        base=str(tmp_path),
        operator=Operator(trusted=("text_ids",)),
        cluster=Cluster("local"),
    )
    found = open_run(tmp_path / "runs").to_pandas()
    assert found["status"].tolist()[2] == "bad_input"
    assert [len(a) for a in found["attr.tokens"][:2]] == [6, 4]
    assert found["words"][1].tolist() == ["[CLS]", "unlikely", "plays", "[SEP]"]


GROUPS_MODEL = """
import torch
from torch import nn

class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4 + 3 * 20 * 20, 1)

    def forward(self, features, pixels):
        return torch.tanh(self.last(torch.cat([features, pixels.flatten(1)], 1)))

def build():
    torch.manual_seed(0)
    return Both().eval()
"""


def test_the_example_of_groups_runs(tmp_path: Path):
    """Each of the ways that it shows, the commented one too."""
    (tmp_path / "groups_model.py").write_text(GROUPS_MODEL)
    random = np.random.default_rng(0)
    columns = ("street", "zip", "city", "age")
    table = {c: random.normal(size=12) for c in columns}
    table["image"] = random.normal(size=(12, 1200)).tolist()
    table["segments"] = random.integers(0, 50, size=(12, 400)).tolist()
    pq.write_table(pa.table({"id": range(12), **table}), tmp_path / "rows.parquet")
    shown = blocks("yaml")[4]
    superpixels = shown.replace("    pixels: {patches", "    # ").replace("# pixels:", "pixels:")
    widths = {}
    for name, text in {"patches": shown, "superpixels": superpixels}.items():
        output = parse_text(text, "README")["output"] | {"uri": name}
        spec = {
            "kind": "attribute",
            "name": "groups",
            "source": {"uri": "rows.parquet", "row_id": "id"},
            "model": {
                "kind": "factory",
                "entrypoint": "groups_model:build",
                "code": ["groups_model.py"],
            },
            "inputs": [
                {"name": "features", "columns": list(columns)},
                {"name": "pixels", "column": "image", "shape": [3, 20, 20]},
            ],
            "output": output,
        }
        trusted = Operator(trusted=("groups_model",))
        run_job(parse_spec(spec), base=str(tmp_path), operator=trusted, cluster=Cluster("local"))
        found = open_run(tmp_path / name).to_pandas()
        attributed = [c for c in found.columns if c.startswith("attr.")]
        assert attributed == ["attr.address", "attr.age", "attr.pixels"]
        widths[name] = len(found["attr.pixels"][0])
    assert widths == {"patches": 4, "superpixels": 50}


def test_query_example_runs(finished_run):
    example = next(b for b in blocks("python") if "open_run(" in b)
    scope: dict[str, object] = {}
    exec(
        compile(example.replace('"attributions"', repr(str(finished_run))), "README", "exec"), scope
    )
    assert scope["run"].complete


def test_the_example_of_reason_codes_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On real data, command by command, with what is shown of it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(
        ROOT / "examples/credit",
        tmp_path / "examples/credit",
        ignore=shutil.ignore_patterns("out", "*.safetensors", "__pycache__"),
    )
    commands = next(b for b in blocks("bash") if "credit_model.py" in b)
    for line in commands.splitlines():
        python, *arguments = shlex.split(line, comments=True)
        command = [] if python == "python" else ["-m", "integrand.service.cli"]
        subprocess.run([sys.executable, *command, *arguments], check=True, capture_output=True)
    example = next(b for b in blocks("python") if "reasons_wide(" in b)
    scope: dict[str, object] = {"open_run": open_run}
    exec(compile(example, "README", "exec"), scope)
    letters = scope["letters"]
    shown = [line[1:].split("  ") for line in example.splitlines() if line.startswith("#")]
    names, *rows = [[cell.strip() for cell in cells if cell.strip()] for cells in shown]
    for row in rows:
        (own,) = letters[letters["row_id"] == int(row[0])][names].values.tolist()
        assert own[1] == pytest.approx(float(row[1]), abs=0.02)
        assert own[2:] == row[2:]
    assert (letters["reasons_status"] == "certified").all()
    assert len(letters) == pytest.approx(193, abs=5)
    with (tmp_path / "letters.csv").open(newline="") as file:
        assert "reason_4_text" in next(csv.reader(file))
    passed = '{kind: training, uri: applications.csv, where: "repaid = 1", draws: 16}'
    found = credits_against(passed, tmp_path / "examples/credit")
    assert (found["reasons_status"] == "certified").sum() == pytest.approx(187, abs=5)
    two = "{kind: average, of: [{kind: mean}, {kind: median}]}"
    found = credits_against(two, tmp_path / "examples/credit")
    assert (found["reasons_agree"] == 1).mean() == pytest.approx(0.64, abs=0.03)


def credits_against(baseline: str, folder: Path) -> pd.DataFrame:
    """The rows with reasons, against a baseline that the text names."""
    joined = " ".join(TEXTS["service/README.md"].split())
    assert baseline in joined
    text = (folder / "credit.yaml").read_text().replace(", until: reasons", "")
    fields = parse_text(text, "credit.yaml") | {"baseline": parse_text(baseline, "README")}
    trusted = Operator(trusted=("credit_model",))
    manifest = run_job(
        parse_spec(fields), base=str(folder), operator=trusted, cluster=Cluster("local")
    )
    return open_run(folder / "out" / manifest.run_id).reasons_wide()


def test_the_spec_of_reason_codes_is_that_of_the_example():
    shown = parse_text(blocks("yaml")[5], "README")
    whole = parse_text((ROOT / "examples/credit/credit.yaml").read_text(), "credit.yaml")
    assert shown.items() <= whole.items()
    parse_spec(whole)


@pytest.mark.parametrize("status", list(RowStatus))
def test_every_status_is_explained(status):
    assert f"| `{status}` |" in TEXTS["README.md"]


def test_every_rule_is_named():
    assert all(f"`{rule}`" in TEXTS["schemas/README.md"] for rule in Rule.__args__)


def shown_commands() -> list[str]:
    """Every line of a shell that calls the command, and what stands in the text as one."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    inline = [c for text in TEXTS.values() for c in re.findall(r"`(ray job submit [^`]+)`", text)]
    found = [re.search(r"\bintegrand (.*?)(?:  +#|$)", line) for line in lines + inline]
    return [match[1] for match in found if match]


@pytest.mark.parametrize("command", shown_commands())
def test_every_command_is_understood(command):
    """Its verb is there, and takes these options."""
    verb, *arguments = shlex.split(command)
    understood = get_command(app).commands[verb].make_context(verb, arguments)
    assert understood.params.keys() >= {p.name for p in understood.command.params if p.expose_value}


def test_every_target_of_make_is_there():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = "\n".join(TEXTS.values())
    assert set(re.findall(r"(?:^|`)make ([a-z]+)\b", text, re.MULTILINE)) - set(targets) == set()


def test_operator_config_example_is_accepted(tmp_path):
    from integrand.service.cli.operator import load_operator

    (example,) = blocks("toml")
    config = tmp_path / "config.toml"
    config.write_text(example)
    assert load_operator(str(config), []).trusted == ("my_models",)
