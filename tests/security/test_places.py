"""Every place that a person may name is judged as a string first: a hostile one is refused and
nothing connects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fsspec
import pytest

from integrand.schemas.errors import SpecError
from integrand.service.cli import commands as cli
from integrand.service.operator import Operator
from integrand.service.running.jobs import plan_job
from integrand.service.runs.query import open_run
from integrand.workers.storage.store import Access
from tests.plugins.jobs import JobFolder
from tests.plugins.listener import HOSTILE, Listener

Fields = dict[str, Any]
FIELDS: dict[str, Callable[[JobFolder, str], Fields]] = {
    "source.uri": lambda job, uri: {"source": {"uri": uri}},
    "source.uri of several": lambda job, uri: {"source": {"uri": ["data", uri]}},
    "model.weights": lambda job, uri: {"model": job.model() | {"weights": uri}},
    "model.code": lambda job, uri: {"model": job.model() | {"code": [f"{job.module}.py", uri]}},
    "model.uri": lambda job, uri: {"model": {"kind": "torch_export", "uri": uri}},
    "output.uri": lambda job, uri: {"output": {"uri": uri}},
}


def access(listener: Listener) -> Access:
    return Access(endpoint_url=f"http://127.0.0.1:{listener.port}")


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_of_a_spec_connects_to_a_hostile_place(
    job: JobFolder, listener: Listener, field: str
):
    for text in HOSTILE:
        uri = text.format(port=listener.port)
        with pytest.raises(SpecError):
            plan_job(
                job.spec(**FIELDS[field](job, uri)),
                base=str(job.path),
                operator=Operator(trusted=(job.module, "torch_export"), access=access(listener)),
            )
        assert listener.calls == 0, uri


def test_neither_does_a_run_that_is_opened(listener: Listener):
    for text in HOSTILE:
        with pytest.raises(SpecError):
            open_run(text.format(port=listener.port), access=access(listener))
        assert listener.calls == 0, text


@pytest.mark.parametrize("verb", ["show", "status"])
def test_nor_one_named_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    listener: Listener,
    verb: str,
):
    for text in HOSTILE:
        monkeypatch.setattr("sys.argv", ["integrand", verb, text.format(port=listener.port)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code, listener.calls) == (2, 0), text
    assert "Traceback" not in capsys.readouterr().err


def test_without_that_judgement_one_of_them_would_connect(listener: Listener):
    with pytest.raises(Exception, match=r"."):  # what it makes of our silence
        fsspec.core.url_to_fs(f"zip://a::http://127.0.0.1:{listener.port}/x")
    assert listener.calls


@pytest.mark.parametrize("where", ["source", "model", "output"])
@pytest.mark.parametrize("option", ["storage_options", "endpoint_url", "credentials"])
def test_how_to_reach_a_store_is_not_for_a_spec_to_say(job: JobFolder, where: str, option: str):
    fields = job.fields()
    fields[where] = fields[where] | {option: {"endpoint_url": "http://127.0.0.1:1"}}
    with pytest.raises(SpecError, match=option):
        job.spec(**fields)
