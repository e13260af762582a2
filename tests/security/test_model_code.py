"""No byte of model code runs before the operator's word for it, whichever verb is used and whatever
form it has.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from integrand.schemas.errors import SpecError
from integrand.schemas.record import dump
from integrand.schemas.uris import Uri
from integrand.service.cli import commands as cli, operator
from integrand.service.operator import Operator
from integrand.service.running.jobs import plan_job
from integrand.workers.models.code import CodeBundle
from integrand.workers.shards.worker import Setup, Worker
from integrand.workers.storage.store import Access
from tests.plugins.jobs import JobFolder

MARKING = "from pathlib import Path\nPath({!r}).open('a').write(__name__ + '\\n')\n"


@pytest.fixture
def marked(job: JobFolder) -> Path:
    """A package whose every module leaves its name in a file when it is imported."""
    mark, package = job.path / "imported", job.path / job.module
    (package / "inner").mkdir(parents=True)
    body = (job.path / f"{job.module}.py").read_text()
    (job.path / f"{job.module}.py").unlink()
    for place, code in (("__init__", ""), ("inner/__init__", ""), ("inner/nets", body)):
        (package / f"{place}.py").write_text(MARKING.format(str(mark)) + code)
    return mark


def model(job: JobFolder) -> dict[str, Any]:
    return {"kind": "factory", "entrypoint": f"{job.module}.inner.nets:build", "code": [job.module]}


def call(monkeypatch: pytest.MonkeyPatch, job: JobFolder, verb: str, *trusted: str) -> int:
    flags = [part for prefix in trusted for part in ("--trust-model-code", prefix)]
    monkeypatch.setattr(
        "sys.argv", ["integrand", verb, str(job.write_spec(model=model(job))), *flags]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def configure(monkeypatch: pytest.MonkeyPatch, job: JobFolder, text: str) -> None:
    (job.path / "config.toml").write_text(text)
    monkeypatch.setenv("INTEGRAND_CONFIG", str(job.path / "config.toml"))


@pytest.mark.parametrize("verb", ["plan", "run", "tune"])
def test_no_module_is_imported_without_trust(
    job: JobFolder, marked: Path, monkeypatch: pytest.MonkeyPatch, verb: str
):
    """Neither the package nor any package above the entrypoint's module."""
    monkeypatch.setattr(operator, "DEFAULT_CONFIG", job.path / "none.toml")
    for trusted in (
        (),
        ("inner",),
        (f"{job.module}x",),
        (f"{job.module}.inner.nets.deeper",),
        (f"{job.module}.in",),
    ):
        assert call(monkeypatch, job, verb, *trusted) == 2
    assert not marked.exists()


def test_trusted_code_does_leave_marks(
    job: JobFolder, marked: Path, monkeypatch: pytest.MonkeyPatch
):
    assert call(monkeypatch, job, "plan", f"{job.module}.inner") == 0
    assert len(marked.read_text().splitlines()) == 3


def test_a_locked_config_is_not_widened_by_a_flag(
    job: JobFolder,
    marked: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    configure(monkeypatch, job, '[trust]\nmodules = ["audited"]\nlocked = true\n')
    assert call(monkeypatch, job, "plan", job.module) == 2
    assert "locked to: audited" in capsys.readouterr().err
    monkeypatch.setattr(
        "sys.argv",
        ["integrand", "run", str(job.write_spec(model=model(job))), "--allow-unauthenticated-ray"],
    )
    with pytest.raises(SystemExit):
        cli.main()
    assert "locked without it" in capsys.readouterr().err
    assert not marked.exists()


def test_a_worker_asks_too(job: JobFolder, marked: Path):
    """A plan that somebody else wrote does not carry their trust with it."""
    plan = plan_job(
        job.spec(model=model(job)), base=str(job.path), operator=Operator(trusted=(job.module,))
    )
    marked.unlink()
    setup = Setup(
        plan=dump(plan),
        plan_sha256="",
        run=Uri("file", str(job.path / "out")),
        access=Access(),
        trusted=("other",),
        code=CodeBundle(),
    )
    with pytest.raises(SpecError, match="trusted: other"):
        Worker(setup)
    assert not marked.exists()


@pytest.mark.parametrize("name", ["integrand", "pickle", "elsewhere"])
def test_shipped_code_is_below_a_trusted_prefix(job: JobFolder, name: str):
    """It stands before what is installed, so it could pass for anything that trusted code
    imports.
    """
    mark = job.path / "ran"
    (job.path / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')\n")
    body = (job.path / f"{job.module}.py").read_text()
    (job.path / f"{job.module}.py").write_text(f"import {name}\n{body}")
    spec = job.spec(model=job.model() | {"code": [f"{job.module}.py", f"{name}.py"]})
    with pytest.raises(SpecError, match=f"modules below a trusted prefix[\\s\\S]*`{name}`"):
        plan_job(spec, base=str(job.path), operator=Operator(trusted=(job.module,)))
    assert not mark.exists()
    allowed = (
        plan_job(spec, base=str(job.path), operator=Operator(trusted=(job.module, name)))
        if name == "elsewhere"
        else None
    )
    assert mark.exists() == (allowed is not None)


def test_an_entrypoint_is_what_its_module_defines_not_what_it_imports(job: JobFolder):
    """The spec chooses the arguments: `run` of a module that uses subprocess would be anybody's
    shell.
    """
    mark = job.path / "ran"
    place = job.path / f"{job.module}.py"
    place.write_text("from subprocess import run\n" + place.read_text())
    model = job.model() | {
        "entrypoint": f"{job.module}:run",
        "arguments": {"args": f"touch {mark}", "shell": True},
    }
    with pytest.raises(SpecError, match="one of subprocess"):
        plan_job(
            job.spec(model=model), base=str(job.path), operator=Operator(trusted=(job.module,))
        )
    assert not mark.exists()


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def poisoned_program(mark: Path) -> bytes:
    """A `.pt2` whose sample inputs are a payload: torch tries weights-only, then unpickles them all
    the same.
    """
    program, payload, made = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(3, 2).eval(), (torch.zeros(4, 3),)), program)
    torch.save(Payload(mark), payload)
    with (
        zipfile.ZipFile(program) as archive,
        zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as poisoned,
    ):
        for name in archive.namelist():
            inputs = "sample_inputs" in name
            poisoned.writestr(name, payload.getvalue() if inputs else archive.read(name))
    return made.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_is_not_even_opened_without_trust(job: JobFolder):
    mark = job.path / "ran"
    (job.path / "m.pt2").write_bytes(poisoned_program(mark))
    spec = job.spec(model={"kind": "torch_export", "uri": "m.pt2"})
    for trusted in ((), (job.module,), ("torchscript",)):
        with pytest.raises(SpecError, match="--trust-model-code torch_export"):
            plan_job(spec, base=str(job.path), operator=Operator(trusted=trusted))
    assert not mark.exists()
    with pytest.raises(Exception, match=r"."):
        plan_job(spec, base=str(job.path), operator=Operator(trusted=("torch_export",)))
    assert mark.exists(), "the attack does not work: this test shows nothing"


def test_weights_are_data_even_for_trusted_code(job: JobFolder):
    mark = job.path / "ran"
    torch.save({"first.weight": Payload(mark)}, job.path / "weights.pt")
    with pytest.raises(Exception, match="weights-only"):
        plan_job(
            job.spec(model=job.weighted("weights.pt")),
            base=str(job.path),
            operator=Operator(trusted=(job.module,)),
        )
    assert not mark.exists()
