"""The command line: what each verb prints and the code it ends with, in this process and on a real
run folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from integrand.schemas.record import dump
from integrand.schemas.sidecars import (
    DriverProgress,
)
from integrand.schemas.specs.job import parse_spec
from integrand.service.cli import commands as cli
from integrand.service.cli.specfile import parse_text
from tests.plugins.jobs import JobFolder

Run = tuple[int, str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `integrand ARGUMENTS`: exit code and what it printed, errors included."""

    def run(*arguments: str) -> Run:
        monkeypatch.setattr("sys.argv", ["integrand", *arguments])
        monkeypatch.setattr(cli.out, "_file", None)
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.fixture
def finished(job: JobFolder) -> JobFolder:
    """A complete run of 20 rows, one of them bad."""
    job.write_model()
    job.write_rows(count=20, c=[float("nan")] + [0.5] * 19)
    job.write_spec()
    return job


def run_spec(call, job: JobFolder, *more: str) -> Run:
    return call(
        "run",
        str(job.path / "spec.yaml"),
        "--pool",
        "local",
        "--trust-model-code",
        job.module,
        *more,
    )


def test_run_says_where_the_folder_is_and_a_second_run_has_nothing_to_do(call, finished: JobFolder):
    code, text = run_spec(call, finished)
    assert code == 0
    assert "bad_input" in text
    folder = next(
        line for line in text.splitlines() if line.startswith("run folder: ")
    ).removeprefix("run folder: ")
    assert (Path(folder) / "_manifest.json").exists()
    code, text = run_spec(call, finished)
    assert (code, "nothing to do" in text) == (0, True)


def test_fresh_is_another_run(call, finished: JobFolder):
    run_spec(call, finished)
    assert run_spec(call, finished, "--fresh", "again")[0] == 0
    assert len(list((finished.path / "out").glob("*/_manifest.json"))) == 2


def test_plan_prints_and_starts_nothing(call, finished: JobFolder):
    spec = str(finished.path / "spec.yaml")
    code, text = call("plan", spec, "--trust-model-code", finished.module)
    assert code == 0
    for told in ("rows", "shards", "output", "memory per worker", "estimated time", "device hours"):
        assert told in text
    code, text = call("plan", spec, "--trust-model-code", finished.module, "--json")
    assert json.loads(text)["numerics"]["batch_rows"] == 16
    assert not list((finished.path / "out").glob("*/_plan.json"))


def test_plan_tells_how_the_integral_is_taken(call, finished: JobFolder):
    finished.write_model("return self.logits(x)")
    _, text = call("plan", str(finished.path / "spec.yaml"), "--trust-model-code", finished.module)
    assert "savings" in text
    assert "channels_last: no 2-d or 3-d convolution" in text
    shallow = "nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()"
    (finished.path / f"{finished.module}.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n    return"
        f" {shallow}\n"
    )
    for accuracy, told in (
        ({"kind": "adaptive"}, "in closed form, without step batches, as `adaptive` does"),
        ({"kind": "exact"}, "in closed form, without step batches"),
    ):
        finished.write_spec(accuracy=accuracy)
        text = call(
            "plan", str(finished.path / "spec.yaml"), "--trust-model-code", finished.module
        )[1]
        assert told in text
        assert "no gradient evaluation" in text
        assert "step batch " not in text


def test_a_run_in_closed_form_has_no_worst_rows(call, finished: JobFolder, tmp_path: Path):
    """Twenty lines of 1e-16 said nothing."""
    (finished.path / f"{finished.module}.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n    return"
        " nn.Linear(3, 2).eval()\n"
    )
    finished.write_spec(accuracy={"kind": "exact"}, name="closed")
    assert run_spec(call, finished)[0] == 0
    code, text = call(
        "show", str(finished.path / "out"), "--name", "closed", "--html", str(tmp_path / "run.html")
    )
    assert code == 0
    assert [
        line for line in text.splitlines() if line.startswith("worst rows: none is worth a look")
    ]
    assert "worst_by" not in text
    assert "none is worth a look" in (tmp_path / "run.html").read_text()


def test_numbers_are_told_with_separators_and_shares(call, finished: JobFolder):
    finished.write_rows(count=12_345)
    finished.write_spec(
        compute={"shard_rows": 5000}, source={"uri": "data"}, accuracy={"kind": "fixed", "steps": 2}
    )
    assert (
        "12,345"
        in call("plan", str(finished.path / "spec.yaml"), "--trust-model-code", finished.module)[1]
    )
    text = run_spec(call, finished)[1]
    assert "12,345 of 12,345" in text
    assert "12,345 (100.0%)" in text


def test_tune_prints_lines_for_the_spec(call, finished: JobFolder):
    code, text = call(
        "tune", str(finished.path / "spec.yaml"), "--trust-model-code", finished.module
    )
    assert (code, "evaluations/s" in text) == (0, True)
    lines = [line for line in text.splitlines() if line.startswith("compute: ")]
    assert lines
    for line in lines:
        compute = parse_spec(finished.fields() | parse_text(line, "tune")).compute
        assert compute.batch_rows in (16, 32, 64, 128, 256, 512, 1024)
    assert call("tune", str(finished.path / "spec.yaml"))[0] == 2


def test_untrusted_code_is_refused_with_the_flag_to_use(call, finished: JobFolder):
    code, text = call("run", str(finished.path / "spec.yaml"), "--pool", "local")
    assert code == 2
    assert f"--trust-model-code {finished.module}" in text


def test_status_and_show_read_the_run(call, finished: JobFolder):
    run_spec(call, finished)
    out = str(finished.path / "out")
    assert "complete" in call("status", out)[1]
    code, text = call("show", out, "--top", "2")
    assert (code, "top features" in text, "worst rows" in text) == (0, True, True)
    code, text = call("show", out, "--row", "3")
    assert (code, "largest attributions" in text) == (0, True)
    code, text = call("show", out, "--row", "999")
    assert (code, "row 999" in text) == (2, True)
    code, text = call("show", out, "--where", "status = 'bad_input'")
    assert (code, "c is NaN" in text or "NaN" in text) == (0, True)
    code, text = call("show", out, "--where", "nonsense ===")
    assert (code, "DuckDB" in text) == (2, True)


def test_an_unfinished_run_is_told_apart(call, finished: JobFolder):
    run_spec(call, finished)
    (folder,) = (p.parent for p in (finished.path / "out").glob("*/_manifest.json"))
    (folder / "_manifest.json").unlink()
    (folder / "data" / "part-00001.parquet").unlink()
    beat = DriverProgress(
        at="2026-01-01T00:00:00+00:00", shards_done=1, shards_planned=2, rows_per_second=5, eta_s=2
    )
    (folder / "_progress.json").write_bytes(dump(beat))
    code, text = call("status", str(folder))
    assert (code, "unfinished" in text, "5 rows/s, ETA 2 s" in text) == (0, True, True)
    assert "not finished" in call("show", str(folder))[1]
    (folder / "_progress.json").write_bytes(b"half a heartb")
    code, text = call("status", str(folder))
    assert (code, "unfinished" in text, "driver last heard" in text) == (0, True, False)


def test_a_retry_holds_the_run_to_its_limits(call, finished: JobFolder):
    """As the run did: complete, and yet not what was asked for."""
    finished.write_rows(
        count=40, row_group_size=20, write_page_checksum=True, b=[float("nan"), *range(39)]
    )
    sound = finished.flip_bit("rows.parquet", 1)
    finished.write_spec(
        limits={"max_bad_share": 0}, compute={"shard_rows": 20, "batch_rows": 16, "attempts": 1}
    )
    assert run_spec(call, finished)[0] == 3
    (finished.path / "data" / "rows.parquet").write_bytes(sound)
    (folder,) = (p.parent for p in (finished.path / "out").glob("*/_partial.json"))
    code, text = call(
        "retry-quarantined", str(folder), "--pool", "local", "--trust-model-code", finished.module
    )
    assert (code, "limits.max_bad_share" in text, (folder / "_manifest.json").exists()) == (
        3,
        True,
        True,
    )
    code, text = call(
        "retry-quarantined", str(folder), "--pool", "local", "--trust-model-code", finished.module
    )
    assert (code, f"nothing is quarantined in {folder}" in text) == (0, True)


def test_places_with_brackets_are_printed_as_they_are(call, finished: JobFolder):
    """Such as rich would take for markup."""
    finished.write_spec(output={"uri": "out[/b][red]x"})
    code, text = run_spec(call, finished)
    assert (code, "/out[/b][red]x/" in text) == (0, True)
    for verb in ("status", "show", "verify"):
        code, text = call(verb, str(finished.path / "out[/b][red]x"))
        assert code == 0, text


def test_limits_exceeded_end_with_3(call, finished: JobFolder):
    finished.write_spec(limits={"max_bad_share": 0.01})
    code, text = run_spec(call, finished)
    assert (code, "limits.max_bad_share: 0.05 is above 0.01" in text) == (3, True)


def test_a_partial_run_ends_with_3_until_it_is_mended_and_retried(call, finished: JobFolder):
    source = finished.write_rows(count=40, row_group_size=20, write_page_checksum=True)
    sound = finished.flip_bit("rows.parquet", row_group=1)
    finished.write_spec(compute={"shard_rows": 20, "batch_rows": 16, "attempts": 1})
    code, text = run_spec(call, finished)
    assert (code, "integrand retry-quarantined" in text) == (3, True)
    retry = ("retry-quarantined", str(finished.path / "out"), "--pool", "local")
    assert call(*retry)[0] == 2
    assert call(*retry, "--trust-model-code", finished.module)[0] == 3
    source.write_bytes(sound)
    code, text = call(*retry, "--trust-model-code", finished.module)
    assert (code, "1 quarantined shards are tried again" in text) == (0, True)
    code, text = call(*retry, "--trust-model-code", finished.module)
    assert (code, "nothing is quarantined" in text) == (0, True)
    assert call("verify", str(finished.path / "out"), "--trust-model-code", finished.module)[0] == 0


def test_schema_is_a_json_schema_that_takes_the_spec(call, finished: JobFolder):
    code, text = call("schema")
    assert code == 0
    jsonschema.validate(json.loads((finished.path / "spec.yaml").read_text()), json.loads(text))


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["bogus"], 2), (["show"], 2), (["--help"], 0)]
)
def test_command_line_itself(call, arguments: list[str], code: int):
    assert call(*arguments)[0] == code


def test_a_pool_of_another_name_is_refused(call, finished: JobFolder):
    assert call("run", str(finished.path / "spec.yaml"), "--pool", "dask")[0] == 2
