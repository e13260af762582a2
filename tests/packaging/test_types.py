"""Who imports a public name gets its type, not Any."""

import re
import subprocess
import sys
from pathlib import Path

import integrand.schemas
import integrand.service
import integrand.workers

ROOT = Path(__file__).parents[2]
HOUSES = (integrand.schemas, integrand.workers, integrand.service)


def test_public_names_have_types(tmp_path: Path):
    names = [f"{house.__name__}.{name}" for house in HOUSES for name in house.__all__]
    imports = [f"import {house.__name__}" for house in HOUSES]
    seen = revealed(tmp_path, [*imports, *(f"reveal_type({name})" for name in names)])
    assert len(seen) == len(names)
    assert [name for name, kind in zip(names, seen, strict=True) if kind == "Any"] == []
    assert seen[names.index("integrand.workers.attribute")].startswith("def (forward: ")


def test_a_name_that_is_not_there_is_an_error_of_types(tmp_path: Path):
    printed = checked(tmp_path, ["import integrand.workers", "integrand.workers.atribute"])
    assert "Module has no attribute" in printed


def revealed(folder: Path, lines: list[str]) -> list[str]:
    return re.findall(r'Revealed type is "(.*)"', checked(folder, lines))


def checked(folder: Path, lines: list[str]) -> str:
    file = folder / "user.py"
    file.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(file)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
