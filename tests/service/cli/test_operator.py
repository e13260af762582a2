"""The operator's file decides what may run and where; flags widen it only where it is not
locked.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from integrand.schemas.errors import SpecError
from integrand.service.cli import operator as operators
from integrand.service.cli.operator import load_operator
from integrand.service.operator import Operator
from integrand.workers.storage.store import Access

FILE = """
[trust]
modules = ["audited"]
locked = {locked}
[storage]
schemes = ["s3"]
buckets = ["audits"]
endpoint_url = "https://s3.example"
"""


def config(folder: Path, text: str) -> str:
    place = folder / "config.toml"
    place.write_text(text)
    return str(place)


def test_without_a_file_flags_alone_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(operators, "DEFAULT_CONFIG", tmp_path / "none.toml")
    assert load_operator(None, ["my_models"]) == Operator(("my_models",), Access())
    assert load_operator(None, []).trusted == ()


def test_the_default_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        operators, "DEFAULT_CONFIG", Path(config(tmp_path, FILE.format(locked="false")))
    )
    assert load_operator(None, []).trusted == ("audited",)


def test_flags_widen_an_open_file(tmp_path: Path):
    found = load_operator(config(tmp_path, FILE.format(locked="false")), ["mine", "audited"])
    assert found.trusted == ("audited", "mine")
    assert found.access == Access("https://s3.example", ("s3",), ("audits",))


def test_flags_cannot_widen_a_locked_file(tmp_path: Path):
    place = config(tmp_path, FILE.format(locked="true"))
    assert load_operator(place, ["audited"]).trusted == ("audited",)
    with pytest.raises(SpecError, match=r"--trust-model-code mine[\s\S]*locked to: audited"):
        load_operator(place, ["mine"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trust]\nmodule = ['a']", "trust.module"),
        ("[trust]\nmodules = 'a'", "trust.modules"),
        ("[trust]\nmodules = [1]", "trust.modules"),
        ("[trust]\nlocked = 1", "trust.locked"),
        ("[secrets]\nkey = 'a'", "secrets: Extra"),
        ("[storage]\nschemes = ['http']", "storage.schemes"),
        ("[storage]\ndecoded_bytes = 0", "storage.decoded_bytes"),
        ("[storage]\nendpoint_url = 's3.example.com'", "storage.endpoint_url"),
        ("[storage]\nendpoint_url = 'https://key:secret@s3.example.com'", "storage.endpoint_url"),
        ("[ray]\nallow_unauthenticated = 'yes'", "ray.allow_unauthenticated"),
        ("modules = ['a']", "modules: Extra"),
        ("[trust", "valid TOML"),
    ],
)
def test_a_field_that_is_not_known_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(SpecError, match=message):
        load_operator(config(tmp_path, text), [])


def test_open_clusters_and_memory_are_for_the_operator_to_allow(tmp_path: Path):
    place = config(
        tmp_path,
        "[trust]\nlocked = true\n[storage]\ndecoded_bytes = 1000\n[ray]\nallow_unauthenticated ="
        " true",
    )
    assert load_operator(place, []).allow_unauthenticated_ray
    assert load_operator(place, [], allow_unauthenticated_ray=True).access.decoded_bytes == 1000
    place = config(tmp_path, FILE.format(locked="true"))
    assert not load_operator(place, []).allow_unauthenticated_ray
    with pytest.raises(SpecError, match=r"--allow-unauthenticated-ray[\s\S]*locked without it"):
        load_operator(place, [], allow_unauthenticated_ray=True)
    place = config(tmp_path, FILE.format(locked="false"))
    assert load_operator(place, [], allow_unauthenticated_ray=True).allow_unauthenticated_ray


def test_an_empty_list_allows_nothing(tmp_path: Path):
    assert load_operator(config(tmp_path, "[storage]\nschemes = []"), []).access.schemes == ()


def test_a_named_file_must_exist(tmp_path: Path):
    with pytest.raises(SpecError, match="no such file"):
        load_operator(str(tmp_path / "none.toml"), [])
