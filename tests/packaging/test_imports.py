"""Imports point one way, heavy packages stay where they belong, and public names can be
imported.
"""

import ast
import importlib
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("schemas", "workers", "service")  # each may import itself and those before it
THIRD_PARTIES_OF_SCHEMAS = {"lazy_loader", "pyarrow", "pydantic", "pydantic_core"}
SCHEMAS_MAY_IMPORT = THIRD_PARTIES_OF_SCHEMAS | sys.stdlib_module_names
RAY_MAY_BE_IMPORTED_BY = {
    "workers/actor.py",
    "service/pools/ray.py",
    "service/pools/slot.py",
    "service/pools/connection.py",
    "service/pools/prepasses.py",
    "service/pools/heartbeat.py",
    "service/pools/failures.py",
}
READING = (
    "service/runs/query.py",
    "service/runs/manifest.py",
    "service/checks/verify.py",
    "service/reports/tables.py",
    "workers/storage/store.py",
    "workers/data/reading.py",
)
SOURCES = sorted(
    str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("source", SOURCES)
def test_imports_point_one_way(source: str):
    own = FOLDERS.index(source.split("/")[0])
    assert imports_of(source, *(f"integrand.{later}" for later in FOLDERS[own + 1 :])) == []
    assert imports_of(source, *FOLDERS) == [], "a bare folder name is a second copy of the module"


@pytest.mark.parametrize("source", [source for source in SOURCES if source.startswith("schemas/")])
def test_schemas_need_pydantic_and_pyarrow_alone(source: str):
    names = {name.split(".")[0] for name in imported_names(source)}
    assert names - SCHEMAS_MAY_IMPORT <= {"integrand"}


def test_ray_is_imported_only_at_the_edge():
    assert {source for source in SOURCES if imports_of(source, "ray")} <= RAY_MAY_BE_IMPORTED_BY


def test_ray_data_is_used_nowhere():
    assert [
        source for source in SOURCES if imports_of(source, "ray.data") or mentions_ray_data(source)
    ] == []


def test_ray_is_never_asked_how_a_job_is():
    """After a head restart a dead job still reads RUNNING: whether a run is done is told by its
    folder alone.
    """
    assert [
        source for source in SOURCES if imports_of(source, "ray.job_submission", "ray.util.state")
    ] == []


def test_drivers_load_ray_only_once_a_job_goes_there():
    modules = "integrand.service.running.jobs, integrand.service.running.retry"
    loaded = run_python(f"import sys, {modules}; print('ray' in sys.modules)")
    assert (loaded.returncode, loaded.stdout.strip()) == (0, "False"), loaded.stderr


def test_drivers_and_workers_start_without_pandas():
    """A tenth of a driver's memory, which is bounded."""
    modules = (
        "integrand.service.running.jobs, integrand.service.pools.choice, integrand.workers.actor"
    )
    loaded = run_python(f"import sys, {modules}; print('pandas' in sys.modules)")
    assert (loaded.returncode, loaded.stdout.strip()) == (0, "False"), loaded.stderr


@pytest.mark.parametrize("source", READING)
def test_reading_results_names_neither_torch_nor_ray(source: str):
    assert imports_of(source, "torch", "ray") == []


@pytest.mark.parametrize(
    "statement",
    [f"import integrand.{source.removesuffix('.py').replace('/', '.')}" for source in READING]
    + ["from integrand.service import open_run", "from integrand.workers import Store"],
)
def test_reading_results_loads_neither_torch_nor_ray(statement: str):
    loaded = run_python(
        f"import sys; {statement}; print(sorted({{'torch', 'ray'}} & set(sys.modules)))"
    )
    assert (loaded.returncode, loaded.stdout.strip()) == (0, "[]"), loaded.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_bare_folder_name_cannot_be_imported(folder: str):
    tried = run_python(f"import {folder}")
    assert tried.returncode == 1
    assert f"ImportError: import integrand.{folder}, not the source folder" in tried.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_public_name_can_be_imported(folder: str):
    package = importlib.import_module(f"integrand.{folder}")
    assert package.__all__
    assert [name for name in package.__all__ if getattr(package, name, None) is None] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_unknown_name_is_an_attribute_error(folder: str):
    package = importlib.import_module(f"integrand.{folder}")
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018


def imports_of(source: str, *modules: str) -> list[str]:
    """Names imported anywhere in a file, inside functions too, that are or lie below one of the
    modules.
    """
    return [
        name
        for name in imported_names(source)
        if any(f"{name}.".startswith(f"{m}.") for m in modules)
    ]


def imported_names(source: str) -> list[str]:
    """`from a import b` counts as `a.b`: b may be a module."""
    package = ".".join(("integrand", *Path(source).parent.parts))
    names = []
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def mentions_ray_data(source: str) -> bool:
    attributes = (node for node in ast.walk(parse(source)) if isinstance(node, ast.Attribute))
    return any(ast.unparse(node) == "ray.data" for node in attributes)


def parse(source: str) -> ast.Module:
    return ast.parse((ROOT / source).read_text(), filename=source)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
