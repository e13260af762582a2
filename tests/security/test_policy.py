"""SECURITY.md says what is so: its tests are there, its config is one, and no test of it is left
out.
"""

from __future__ import annotations

import re
from pathlib import Path

from integrand.service.cli.operator import load_operator
from integrand.service.operator import Operator
from integrand.workers.storage.store import Access

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_test_that_it_names_is_there():
    named = set(re.findall(r"`(tests/\S+\.py)`", TEXT))
    assert [name for name in named if not (ROOT / name).is_file()] == []
    mine = {str(place.relative_to(ROOT)) for place in Path(__file__).parent.glob("test_*.py")}
    assert mine - named == {"tests/security/test_policy.py"}


def test_its_config_is_one(tmp_path: Path):
    (found,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "config.toml").write_text(found)
    access = Access(
        endpoint_url="https://s3.example.com", schemes=("file", "s3"), buckets=("audits",)
    )
    assert load_operator(str(tmp_path / "config.toml"), []) == Operator(("my_models",), access)
