"""Names and ids from strangers: text in HTML, cells in CSV, glyphs on a terminal, and nothing else
anywhere.
"""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from integrand.service.cli import commands as cli
from integrand.service.reports.page import html_page
from integrand.service.reports.spreadsheet import write_csv
from integrand.service.runs.query import Run, open_run
from integrand.service.terminal import Terminal, visible
from tests.plugins.jobs import JobFolder
from tests.plugins.listener import Listener

IDS = (
    "=1+1",
    "+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "＝1",
    "plain",
    "a,b",
    'say "hi"',
    "two\nlines",
    "<b>bold</b>",
    "[red]markup[/red]",
    ":skull:",
    "\x1b[2J\x1b]0;title\x07",
    "\u202etxt.exe",
)


def payload(port: int) -> str:
    """Calls home as an image, as a script and through a handler."""
    home = f"http://127.0.0.1:{port}/x"
    return (
        f"<img src={home}"
        " "
        f"onerror=\"document.title='ran';fetch('{home}')\"><script>document.title='ran';fetch('{home}')</script></title><style>@import"
        f" '{home}';</style>"
    )


@pytest.fixture
def hostile(job: JobFolder, listener: Listener) -> Run:
    """A finished run with hostile feature names, ids, and a hostile reason of a failed row."""
    names = [payload(listener.port), "=HYPERLINK(1)", "[bold]c[/bold]\x1b[31m"]
    ids = [*IDS, payload(listener.port)] + [f"id {i}" for i in range(3)]
    values = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    values[19, 0] = 1000.0
    job.write_table(
        "rows.parquet", pa.table({"id": ids, **dict(zip(names, values.T, strict=True))})
    )
    job.write_model(
        f"if (x[:, 0] == 1000).any(): raise ValueError({payload(listener.port)!r})\nreturn"
        " self.logits(x)"
    )
    manifest = job.run(inputs=[{"name": "f", "columns": names}])
    assert manifest.statuses == {"failed": 1, "unchecked": 19}
    return open_run(job.run_uri(manifest))


# --- HTML --------------------------------------------------------------------------------------


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[str], str]:
    """What Chromium makes of a page: its document, once its scripts had five seconds."""

    def dump(html: str) -> str:
        (tmp_path / "page.html").write_text(html, encoding="utf-8")
        command = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            (tmp_path / "page.html").as_uri(),
        ]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=200
        ).stdout

    return dump


@pytest.mark.needs_tool("chromium")
def test_a_browser_runs_and_fetches_nothing(
    hostile: Run, listener: Listener, browse: Callable[[str], str]
):
    found = browse(html_page(hostile, 20))
    assert f"<title>{hostile.manifest.name}" in found
    assert "<script" not in found
    assert "<img" not in found
    assert found.count("&lt;img src=") >= 2  # the feature and the row
    assert listener.calls == 0


@pytest.mark.needs_tool("chromium")
def test_the_browser_would_run_it(listener: Listener, browse: Callable[[str], str]):
    found = browse(f"<!doctype html><title>mine</title><p>{payload(listener.port)}")
    assert "<title>ran</title>" in found
    assert listener.calls


@pytest.mark.needs_tool("chromium")
def test_the_policy_of_the_page_alone_would_stop_it(
    hostile: Run, listener: Listener, browse: Callable[[str], str]
):
    """Were a name ever let through unescaped."""
    opened = html_page(hostile, 20).replace("</h1>", payload(listener.port) + "</h1>")
    found = browse(opened)
    assert "<img" in found
    assert "<title>ran</title>" not in found
    assert listener.calls == 0


def test_control_characters_are_spelt_out_on_the_page(hostile: Run):
    found = html_page(hostile, 20)
    assert "\x1b" not in found
    assert "\u202e" not in found
    assert "\\x1b[31m" in found


# --- CSV ---------------------------------------------------------------------------------------


def written(table: pa.Table) -> list[list[str]]:
    file = io.StringIO(newline="")
    assert write_csv(file, [table[:3], table[3:]]) == table.num_rows
    return list(csv.reader(io.StringIO(file.getvalue(), newline="")))


def test_no_cell_is_a_formula_and_numbers_stay_numbers(hostile: Run, tmp_path: Path):
    with (tmp_path / "out.csv").open("w", encoding="utf-8", newline="") as file:
        assert write_csv(file, hostile.tables()) == 20
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    frame = hostile.to_pandas()
    assert header == list(frame.columns)
    assert [row[0] for row in rows] == [
        f"'{i}" if i[0] in "=+-@\t\r＝" else i for i in frame["row_id"]
    ]
    attributions = [row[header.index("attr.=HYPERLINK(1)")] for row in rows]
    assert any(a.startswith("-") for a in attributions)
    assert [float(a) for a in attributions[:19]] == frame["attr.=HYPERLINK(1)"].iloc[:19].tolist()
    assert attributions[19] == ""


def test_every_kind_of_cell():
    table = pa.table(
        {
            "=name": ["=a", None, "-1", "'", "x"],
            "number": [-1.5, None, float("inf"), 0.1, 2.0],
            "whole": [-3, 1, 2, None, 4],
            "exact": pa.array([Decimal("-1.50"), None, None, None, None], pa.decimal128(5, 2)),
            "list": [[-1.0, 2.0], None, [], [0.5], [1]],
            "data": pa.array([b"=", b"a", None, None, None]),
        }
    )
    header, first, second, third, *_ = written(table)
    assert header == ["'=name", "number", "whole", "exact", "list", "data"]
    assert first == ["'=a", "-1.5", "-3", "-1.50", "[-1.0, 2.0]", "b'='"]
    assert second == ["", "", "1", "", "", "b'a'"]
    assert third[:2] == ["'-1", "inf"]


# --- terminal ----------------------------------------------------------------------------------


def test_the_terminal_shows_names_as_they_are(hostile: Run, monkeypatch: pytest.MonkeyPatch):
    """With colours on, so that escapes of our own are there to be told from theirs."""
    shown = io.StringIO()
    monkeypatch.setattr(
        cli, "out", Terminal(file=shown, force_terminal=True, width=400, color_system="standard")
    )
    for verb in (
        ["show", str(hostile.uri), "--top", "20"],
        ["show", str(hostile.uri), "--row", IDS[-2]],
        ["status", str(hostile.uri)],
    ):
        monkeypatch.setattr("sys.argv", ["integrand", *verb])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
    text = shown.getvalue()
    for theirs in ("\x1b[2J", "\x1b]0;", "\x1b[31mc", "\x07", "\u202e", "💀"):
        assert theirs not in text
    for told in (
        "[red]markup[/red]",
        ":skull:",
        "[bold]c[/bold]\\x1b[31m",
        "\\x1b[2J",
        "\\u202etxt.exe",
    ):
        assert told in text


def test_neither_does_an_error_move_the_cursor(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    spec = job.write_spec(inputs=[{"name": "f", "columns": ["a", "\x1b[2J\x1b]0;pwned\x07"]}])
    monkeypatch.setattr(
        "sys.argv", ["integrand", "plan", str(spec), "--trust-model-code", job.module]
    )
    with pytest.raises(SystemExit):
        cli.main()
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("é 漢 🙂", "é 漢 🙂"),
        ("a\nb\tc", "a\nb\tc"),
        ("\x00\x1b\x7f", "\\x00\\x1b\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202e\u2066", "\\u202e\\u2066"),
        ("\ud800", "\\ud800"),
        ("a\rb", "a\\rb"),
    ],
)
def test_visible(text: str, shown: str):
    assert visible(text) == shown


# --- the command line --------------------------------------------------------------------------


def run_show(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr("sys.argv", ["integrand", "show", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_show_writes_both_files(hostile: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert (
        run_show(
            monkeypatch,
            str(hostile.uri),
            "--csv",
            str(tmp_path / "rows.csv"),
            "--html",
            str(tmp_path / "page.html"),
        )
        == 0
    )
    assert len(list(csv.reader((tmp_path / "rows.csv").open(newline="")))) == 21
    assert (tmp_path / "page.html").read_text() == html_page(hostile, 10)


def test_a_place_that_cannot_be_written_is_told(
    hostile: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run_show(monkeypatch, str(hostile.uri), "--csv", "/no/such/folder/rows.csv") == 2
    assert "file /no/such/folder/rows.csv" in capsys.readouterr().err
