"""The wheel carries every file of the three folders and works without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("schemas", "workers", "service")
CACHES = shutil.ignore_patterns("__pycache__", ".*")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools would also pack whatever an earlier build left in build/."""
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=CACHES)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        ".",
    ]
    subprocess.run(command, cwd=source, check=True)
    (built,) = source.glob("integrand-*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_three_folders_and_nothing_else(wheel: Path):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    kept = [
        path.relative_to(ROOT)
        for path in files
        if "__pycache__" not in path.parts and path.name[0] != "."
    ]
    assert packed == {f"integrand/{path.as_posix()}" for path in kept}


def test_the_wheel_holds_the_licence_the_types_and_the_demo_data(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    expected = {f"integrand/{folder}/py.typed" for folder in FOLDERS} | {
        "integrand/service/demos/digits.parquet"
    }
    assert expected <= set(names)
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_the_wheel_imports_without_the_checkout(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import integrand.service.cli as cli; print(cli.__file__)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "integrand"), done.stderr
