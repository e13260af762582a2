"""Code of models in folders that only one test sees."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.model_code import BUILD


@pytest.fixture
def import_state() -> Iterator[None]:
    """Imports as they were before, so that no test sees the code of another."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("toy_", "my_")):
            del sys.modules[name]


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy_models.py").write_text(BUILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path
