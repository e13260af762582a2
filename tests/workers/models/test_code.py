"""Model code runs only where it is trusted; what travels is what was planned."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integrand.schemas.errors import DataError, SpecError
from integrand.schemas.records import Artefact
from integrand.schemas.specs.job import parse_spec
from integrand.schemas.specs.models import ExportedModel, Model, ScriptedModel
from integrand.service.operator import Operator
from integrand.service.running.jobs import plan_job
from integrand.workers.models.code import (
    CodeBundle,
    check_trust,
    code_digest,
    install_code,
    model_artefacts,
    pack_code,
)
from tests.plugins.model_code import BUILD, STORE, X, factory, loaded

pytestmark = pytest.mark.usefixtures("import_state")

# --- trust -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "module", "trusted"),
    [
        ("acme", "acme", True),
        ("acme", "acme.nets", True),
        ("acme.nets", "acme.nets", True),
        ("acme.nets", "acme.nets.v2", True),
        ("acme", "acmeevil", False),
        ("acme", "acme_models", False),
        ("acme.nets", "acme", False),
        ("acme.nets", "acme.netsx", False),
        ("", "acme", False),
        ("nets", "acme.nets", False),
        (".", "acme", False),
    ],
)
def test_trust_matches_whole_components(prefix: str, module: str, trusted: bool) -> None:
    model = factory(f"{module}:build")
    if trusted:
        check_trust(model, ("other", prefix))
        return
    with pytest.raises(SpecError, match=f"`{module}`(.|\n)*--trust-model-code {module}"):
        check_trust(model, ("other", prefix))


@pytest.mark.parametrize(
    "model", [ExportedModel(uri="m.pt2"), ScriptedModel(uri="m.pt")], ids=lambda m: m.kind
)
def test_programs_are_code_too(model: Model) -> None:
    check_trust(model, (model.kind,))
    with pytest.raises(SpecError, match="trusted: nothing"):
        check_trust(model, ())


def test_untrusted_code_is_not_even_imported(tmp_path: Path) -> None:
    """A module that leaves a mark when it is imported: planning without trust leaves none."""
    mark = tmp_path / "imported"
    (tmp_path / "my_evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n{BUILD}")
    (tmp_path / "data").mkdir()
    pq.write_table(
        pa.table({"a": [1.0], "b": [2.0], "c": [3.0]}), tmp_path / "data" / "rows.parquet"
    )
    spec = parse_spec(
        {
            "name": "t",
            "source": {"uri": "data"},
            "output": {"uri": "out"},
            "target": {"kind": "index", "index": 0},
            "inputs": [{"name": "f", "columns": ["a", "b", "c"]}],
            "model": {"kind": "factory", "entrypoint": "my_evil:build", "code": ["my_evil.py"]},
        }
    )
    for trusted in ((), ("my",), ("my_evi",), ("my_evil.sub",)):
        with pytest.raises(SpecError, match="my_evil"):
            plan_job(spec, base=str(tmp_path), operator=Operator(trusted=trusted))
    assert not mark.exists()
    plan_job(spec, base=str(tmp_path), operator=Operator(trusted=("my_evil",)))
    assert mark.exists()


# --- shipped code ------------------------------------------------------------------------------


def write_code(folder: Path, form: str, body: str = BUILD) -> str:
    """`toy_shipped` as one file, as a package or as a wheel; returns its name under
    `model.code`.
    """
    if form == "file":
        (folder / "toy_shipped.py").write_text(body)
        return "toy_shipped.py"
    if form == "folder":
        (folder / "toy_shipped").mkdir(exist_ok=True)
        (folder / "toy_shipped" / "__init__.py").write_text("from toy_shipped.parts import build\n")
        (folder / "toy_shipped" / "parts.py").write_text(body)
        (folder / "toy_shipped" / "notes.txt").write_text("not code")
        return "toy_shipped"
    with zipfile.ZipFile(folder / "toy_shipped-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy_shipped/__init__.py", body)
        wheel.writestr("toy_shipped-1.0.dist-info/METADATA", "Name: toy_shipped\nVersion: 1.0\n")
    return "toy_shipped-1.0-py3-none-any.whl"


@pytest.mark.parametrize("form", ["file", "folder", "wheel"])
def test_code_travels_as_a_file_a_folder_or_a_wheel(tmp_path: Path, form: str) -> None:
    model = factory("toy_shipped:build", code=(write_code(tmp_path, form),))
    bundle = pack_code(STORE, model, str(tmp_path))
    install_code(bundle)
    assert loaded(model, tmp_path)(X).shape == (5, 2)
    home = Path(str(sys.modules["toy_shipped"].__file__))
    assert not home.is_relative_to(tmp_path)
    assert not list(home.parent.rglob("notes.txt"))


@pytest.mark.parametrize("form", ["file", "folder", "wheel"])
def test_code_digests_change_with_the_code_and_nothing_else(tmp_path: Path, form: str) -> None:
    model = factory("toy_shipped:build", code=(write_code(tmp_path, form),))
    first = pack_code(STORE, model, str(tmp_path))
    os.utime(tmp_path / model.code[0], (0, 0))
    assert pack_code(STORE, model, str(tmp_path)).digest == first.digest
    write_code(tmp_path, form, BUILD + "\n# changed\n")
    assert pack_code(STORE, model, str(tmp_path)).digest != first.digest


@pytest.mark.parametrize("form", ["file", "folder", "wheel"])
def test_the_code_installed_last_is_the_code_that_runs(tmp_path: Path, form: str) -> None:
    """Planned again in one process after an edit, and then back: a module imported before must not
    be used again.
    """
    bundles, digests = [], []
    for outputs in (2, 5):
        body = BUILD.replace("outputs=2", f"outputs={outputs}")
        model = factory("toy_shipped:build", code=(write_code(tmp_path, form, body),))
        bundles.append(pack_code(STORE, model, str(tmp_path)))
    for bundle, outputs in ((bundles[0], 2), (bundles[1], 5), (bundles[0], 2), (bundles[0], 2)):
        install_code(bundle)
        digests.append(code_digest(model))
        assert loaded(model, tmp_path)(X).shape == (5, outputs)
    assert digests[0] == digests[2] == digests[3] != digests[1]


def test_code_digest_covers_the_whole_package_without_importing_it(code: Path) -> None:
    (code / "toy_package" / "inner").mkdir(parents=True)
    (code / "toy_package" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (code / "toy_package" / "inner" / "nets.py").write_text(BUILD)
    (code / "toy_package" / "weights.bin").write_bytes(b"1")
    model = factory("toy_package.inner.nets:build")
    first = code_digest(model)
    (code / "toy_package" / "weights.bin").write_bytes(b"2")
    assert code_digest(model) == first
    (code / "toy_package" / "beside.py").write_text("")
    second = code_digest(model)
    (code / "toy_package" / "inner" / "nets.py").write_text(BUILD + "\n")
    assert len({first, second, code_digest(model)}) == 3
    assert code_digest(ExportedModel(uri="m.pt2")) is None


def test_a_namespace_package_is_looked_at_one_level_below(code: Path) -> None:
    (code / "toy_space" / "nets").mkdir(parents=True)
    (code / "toy_space" / "nets" / "__init__.py").write_text(BUILD)
    (code / "toy_space" / "other.py").write_text("raise RuntimeError('imported')\n")
    first = code_digest(factory("toy_space.nets:build"))
    (code / "toy_space" / "other.py").write_text("x = 1\n")
    assert code_digest(factory("toy_space.nets:build")) == first
    (code / "toy_space" / "nets" / "__init__.py").write_text(BUILD + "\n")
    assert code_digest(factory("toy_space.nets:build")) != first


@pytest.mark.parametrize("module", ["toy_missing", "toy_models.deeper", "sys", "__main__"])
def test_modules_without_source_files_are_refused(
    code: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    if module == "toy_models.deeper":
        assert code_digest(factory("toy_models.deeper:f")) == code_digest(factory("toy_models:f"))
        return
    with pytest.raises(SpecError, match="no such module"):
        code_digest(factory(f"{module}:f"))


def test_a_folder_without_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"a wheel, a \.py file or a folder"):
        pack_code(STORE, factory("empty:build", code=("empty",)), str(tmp_path))


def test_a_wheel_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as wheel:
        wheel.writestr("../../toy_escaped.py", "x = 1")
    install_code(CodeBundle((("evil-1-py3-none-any.whl", sink.getvalue()),)))
    folder = Path(sys.path[0])
    assert (folder / "toy_escaped.py").exists()
    assert not (folder.parent.parent / "toy_escaped.py").exists()


def test_artefacts_name_every_file(code: Path) -> None:
    (code / "m.pt2").write_bytes(b"abc")
    assert model_artefacts(STORE, factory(), str(code)) == ()
    expected = Artefact(uri=f"{code}/m.pt2", sha256=hashlib.sha256(b"abc").hexdigest())
    (found,) = model_artefacts(STORE, ExportedModel(uri="m.pt2"), str(code))
    assert found.sha256 == expected.sha256
    assert found.uri.endswith("m.pt2")
