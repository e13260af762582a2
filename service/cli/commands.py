"""The command line: thin verbs over `jobs` and `query`. The one place that reads the
environment.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from integrand.schemas.errors import DataError, IntegrandError, IntegrityError
from integrand.service.cli.operator import load_operator
from integrand.service.cluster import Cluster, PoolKind
from integrand.service.operator import Operator
from integrand.service.terminal import Terminal

if TYPE_CHECKING:
    from integrand.schemas.records import Plan, RunManifest
    from integrand.schemas.specs.job import AttributeSpec
    from integrand.schemas.uris import Uri
    from integrand.service.runs.query import Run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Integrated Gradients over whole datasets, with an honest error estimate for every row.",
)
demo = typer.Typer(
    no_args_is_help=True, help="Run a whole job on data that comes with the package."
)
app.add_typer(demo, name="demo")
out = Terminal(soft_wrap=True, width=None if sys.stdout.isatty() else 120)
err = Terminal(stderr=True, soft_wrap=True)

SpecFile = Annotated[Path, typer.Argument(help="Job spec, YAML or JSON.", metavar="SPEC")]
RunUri = Annotated[
    str,
    typer.Argument(help="A run folder, or an output root (then its latest run).", metavar="RUN"),
]
Trust = Annotated[
    list[str],
    typer.Option(
        "--trust-model-code",
        metavar="PREFIX",
        help="Module prefix whose model code may run; repeatable.",
    ),
]
Fresh = Annotated[
    str, typer.Option("--fresh", metavar="SALT", help="Any text: a new run of the same job.")
]
Address = Annotated[
    str | None, typer.Option("--address", help="Ray cluster; default: RAY_ADDRESS, else one here.")
]
PoolOption = Annotated[
    PoolKind,
    typer.Option(
        "--pool",
        help=(
            "`ray`; `local` for one worker in this process; `auto`: local for small jobs without a"
            " cluster."
        ),
    ),
]
OpenRay = Annotated[
    bool,
    typer.Option("--allow-unauthenticated-ray", help="Use a cluster that takes anybody's calls."),
]
Named = Annotated[
    str | None, typer.Option("--name", help="Which job, where an output root holds several.")
]
Out = Annotated[
    str | None, typer.Option("--out", metavar="URI", help="Where the demo writes; default ./out.")
]


@app.command()
def schema() -> None:
    """Print the JSON Schema of a job spec."""
    from integrand.schemas.specs.job import published_schema

    print(json.dumps(published_schema(), indent=2))


@app.command()
def plan(
    spec: SpecFile,
    trust: Trust = [],  # noqa: B006 — typer copies it
    ingest: Annotated[
        bool, typer.Option("--ingest", help="Split and count what is else estimated.")
    ] = False,
    fresh: Fresh = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON.")] = False,
) -> None:
    """Resolve and check a job, and print what it would do and cost."""
    from integrand.service.cli.specfile import load_spec
    from integrand.service.running.jobs import plan_job

    operator = _operator(trust)
    parsed, base = load_spec(spec)
    made = plan_job(parsed, base=base, operator=operator, salt=fresh, ingest=ingest)
    print(made.model_dump_json(indent=1)) if as_json else _print_plan(made)


@app.command()
def tune(
    spec: SpecFile,
    trust: Trust = [],  # noqa: B006 — typer copies it
) -> None:
    """Time step batches of a job's own rows on this machine, and print lines for its spec. Decides
    and writes nothing.
    """
    from integrand.service.cli.specfile import load_spec
    from integrand.service.planning.tuning import tune_job
    from integrand.service.reports import plans

    operator = _operator(trust)
    parsed, base = load_spec(spec)
    plans.show_tuning(
        out, tune_job(parsed, base=base, trusted=operator.trusted, access=operator.access)
    )


@app.command()
def run(
    spec: SpecFile,
    trust: Trust = [],  # noqa: B006 — typer copies it
    address: Address = None,
    pool: PoolOption = "auto",
    fresh: Fresh = "",
    allow_mixed: Annotated[
        bool,
        typer.Option(
            "--allow-mixed",
            help="Resume on another torch build, or on other kernels where bits are required.",
        ),
    ] = False,
    open_ray: OpenRay = False,
    logical_date: Annotated[
        str | None, typer.Option("--logical-date", help="ISO date that orders `_latest`.")
    ] = None,
) -> None:
    """Run a job to its end. Run again to resume: only missing shards are computed."""
    from integrand.service.cli.specfile import load_spec
    from integrand.service.progress import shown_on
    from integrand.service.running.jobs import run_job
    from integrand.workers.storage.store import Store

    operator = _operator(trust, open_ray)
    parsed, base = load_spec(spec)
    with _interruptible(), shown_on(out) as listen:
        manifest = run_job(
            parsed,
            base=base,
            operator=operator,
            cluster=_cluster(pool, address),
            salt=fresh,
            allow_mixed=allow_mixed,
            logical_date=logical_date,
            listen=listen,
        )
    root = Store(operator.access).parse(parsed.output.uri, base)
    _end(parsed, manifest, root.child(manifest.run_id))


@app.command("retry-quarantined")
def retry_quarantined(
    run: RunUri,
    name: Named = None,
    trust: Trust = [],  # noqa: B006 — typer copies it
    address: Address = None,
    pool: PoolOption = "ray",
    open_ray: OpenRay = False,
) -> None:
    """Run the shards again that a partial run gave up, from its folder alone; what else is missing,
    too.
    """
    from integrand.service.progress import shown_on
    from integrand.service.running.retry import retry_quarantined as retry

    operator = _operator(trust, open_ray)
    cluster = _cluster(pool, address)
    with _interruptible(), shown_on(out) as listen:
        manifest = retry(run, name=name, operator=operator, cluster=cluster, listen=listen)
    opened = _open(run, name)
    if manifest is None:
        out.print(f"nothing is quarantined in {opened.uri}", highlight=False)
        return
    _end(opened.plan.spec, manifest, opened.uri)


@app.command()
def verify(
    run: RunUri,
    name: Named = None,
    sample: Annotated[
        int, typer.Option("--sample", metavar="N", min=0, help="Rows to attribute again.")
    ] = 16,
    seed: Annotated[int, typer.Option("--seed", help="Draws them.")] = 0,
    trust: Trust = [],  # noqa: B006 — typer copies it
) -> None:
    """Hold a run folder against what it says of itself, and a few rows against the model; tell what
    does not hold.
    """
    from integrand.service.checks.verify import verify_run
    from integrand.service.reports import runs

    operator = _operator(trust)
    found = verify_run(
        run, name=name, sample=sample, seed=seed, trusted=operator.trusted, access=operator.access
    )
    runs.show_verification(out, found)
    if not found.holds:
        raise typer.Exit(IntegrityError.exit_code)


@app.command()
def status(run: RunUri, name: Named = None) -> None:
    """Tell how far a run is, from storage alone."""
    from integrand.service.reports import runs

    opened = _open(run, name)
    runs.show_manifest(out, opened.manifest)
    if not opened.complete:
        runs.show_heartbeat(out, opened)
    out.print(f"run folder: {opened.uri}", highlight=False)


@app.command()
def show(
    run: RunUri,
    name: Named = None,
    top: Annotated[
        int, typer.Option("--top", metavar="K", help="How many features and rows.")
    ] = 10,
    row: Annotated[
        str | None,
        typer.Option("--row", metavar="ID", help="One row and its largest attributions."),
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", help='DuckDB condition, e.g. "gap > 0.1".')
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write all output rows as CSV.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write an HTML page of the run.")
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png",
            metavar="FILE",
            help="Draw the run, or with --row that row: .png, .svg or .pdf.",
        ),
    ] = None,
    bars: Annotated[
        bool, typer.Option("--bars", help="Of the run, --png draws mean |attribution|.")
    ] = False,
) -> None:
    """Print top features and worst rows, one row, or the rows that match a condition."""
    from integrand.service.reports import rows, tables

    opened = _open(run, name)
    _export(opened, csv, html, top)
    if png is not None:
        _draw(opened, row, png, bars=bars)
    if not opened.complete:
        err.print(
            "this run is not finished: what follows covers its committed shards only",
            style="yellow",
        )
    if row is not None:
        rows.show_row(out, opened, row, top)
    elif where is not None:
        rows.show_rows(out, opened.where(where), f"rows where {where}", top)
    else:
        tables.show_frame(out, opened.top_features(top), "top features", top)
        rows.show_worst(out, opened, top)


@demo.command("digits")
def demo_digits(out: Out = None) -> None:
    """MNIST digits: train the CNN, attribute it on Ray, draw the heat maps."""
    from integrand.service.demos import digits

    with _interruptible():
        raise typer.Exit(digits(out, _operator([]).access))


@demo.command("synthetic")
def demo_synthetic(out: Out = None) -> None:
    """A regression whose true attributions are known: measured against expected."""
    from integrand.service.demos import synthetic

    with _interruptible():
        raise typer.Exit(synthetic(out, _operator([]).access))


def _cluster(pool: PoolKind, address: str | None) -> Cluster:
    return Cluster(pool, address or os.environ.get("RAY_ADDRESS"))


def _operator(trust: list[str], open_ray: bool = False) -> Operator:
    return load_operator(
        os.environ.get("INTEGRAND_CONFIG"), trust, allow_unauthenticated_ray=open_ray
    )


def _open(run: str, name: str | None) -> Run:
    from integrand.service.runs.query import open_run

    with warnings.catch_warnings():  # an unfinished run is told as the verb's own output
        warnings.simplefilter("ignore", UserWarning)
        return open_run(run, name=name, access=_operator([]).access)


def _draw(run: Run, row: str | None, file: Path, *, bars: bool) -> None:
    from integrand.service.reports.pictures.choice import (
        bars_of_run,
        picture_of_row,
        picture_of_run,
    )
    from integrand.service.reports.pictures.style import save

    if row is not None:
        made = picture_of_row(run, row)
    else:
        made = bars_of_run(run) if bars else picture_of_run(run)
    save(made, file)
    out.print(f"picture: {file}", highlight=False)


def _export(run: Run, csv: Path | None, html: Path | None, top: int) -> None:
    """The files that `show` was asked for."""
    if csv is not None:
        from integrand.service.reports.spreadsheet import write_csv

        with _writing(csv) as file:
            write_csv(file, run.wide_tables())
    if html is not None:
        from integrand.service.reports.page import html_page

        with _writing(html) as file:
            file.write(html_page(run, top))


@contextmanager
def _writing(place: Path) -> Iterator[TextIO]:
    try:
        with place.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise DataError(
            f"file {place}", expected="a place that can be written", seen=str(error)
        ) from error
    out.print(f"written: {place}", highlight=False)


def _print_plan(plan: Plan) -> None:
    from integrand.service.reports import plans

    plans.show_plan(out, plan)


def _end(spec: AttributeSpec, manifest: RunManifest, folder: Uri) -> None:
    """What a run came to. Exit code 3 if it is partial, or above a limit of its spec."""
    from integrand.service.reports import runs
    from integrand.service.running.jobs import limits_exceeded

    runs.show_manifest(out, manifest)
    out.print(f"run folder: {folder}", highlight=False)
    problems = limits_exceeded(spec, manifest)
    for problem in problems:
        err.print(problem, style="red", highlight=False)
    if problems or not manifest.complete:
        raise typer.Exit(3)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM (`ray job stop`, preemption) stop the workers, say how to resume, and exit
    with 130.
    """

    def interrupt(signum: int, frame: object) -> None:
        # Ray's own handler may come first, and has the process aborted 3 s later
        signal.alarm(0)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        err.print(
            "interrupted: what was committed is safe; run the same command again to resume",
            style="yellow",
        )
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Entry point. Exit codes: the error tree in `schemas.errors`, 3 for partial runs, 130 for
    interrupted ones.
    """
    # a model that crashes while it is tried says where
    faulthandler.enable(sys.__stderr__ or sys.stderr)
    try:
        app()
    except IntegrandError as error:
        err.print(f"{type(error).__name__}: {error}", style="red", highlight=False)
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def _top(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        print(version("integrand"))
        raise typer.Exit()
