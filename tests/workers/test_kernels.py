"""Kernels are asked for before their first use, read back and named; a setting of the user's own
stays and is told.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from integrand.workers import kernels
from integrand.workers.kernels import Kernels
from integrand.workers.models.repeatability import measure_repeatability
from integrand.workers.models.row_tensors import RowTensors

X86_MKL = torch.backends.mkl.is_available() and platform.machine() == "x86_64"
needs_mkl = pytest.mark.skipif(not X86_MKL, reason="needs a torch with MKL")
READ = "print(kernels.in_force().mkl)"


def told(code: str, **environment: str | None) -> tuple[str, str]:
    """What a fresh Python prints and warns of, in an environment in which these are set, or not at
    all (None).
    """
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in (kernels.MKL, kernels.ATEN, kernels.ONEDNN)
    }
    variables |= {name: value for name, value in environment.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    )
    return done.stdout.strip(), done.stderr


@needs_mkl
@pytest.mark.parametrize("first", ["", "import torch; "], ids=["before torch", "after torch"])
def test_importing_the_package_asks_for_strict_kernels(first: str) -> None:
    code = (
        f"{first}from integrand.workers import kernels; import torch; torch.rand(9, 9) @"
        f" torch.rand(9, 9); {READ}"
    )
    assert told(code)[0] == "AUTO,STRICT"


@needs_mkl
@pytest.mark.parametrize(
    ("value", "seen", "strict"),
    [
        ("COMPATIBLE", "COMPATIBLE", True),
        ("AUTO", "AUTO", False),
        ("", "OFF", False),
    ],
)
def test_a_setting_of_the_users_own_stays_and_is_told(value: str, seen: str, strict: bool) -> None:
    code = (
        f"from integrand.workers import kernels; {READ};"
        " print(kernels.objection(kernels.in_force()))"
    )
    branch, objection = told(code, MKL_CBWR=value)[0].split("\n")
    assert branch == seen
    assert (objection == "None") == strict
    assert strict or (
        f"MKL_CBWR={value} is your own setting" in objection and "unset it" in objection
    )


@needs_mkl
def test_a_notebook_that_used_mkl_before_is_told_once() -> None:
    code = """
import torch
torch.rand(9, 9) @ torch.rand(9, 9)
from integrand.workers import attribute
from integrand.workers import kernels
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 1)).eval()
print([str(attribute(model, torch.ones(2, 3)).status[0]) for _ in range(3)], kernels.in_force().mkl)
"""
    printed, warned = told(code)
    assert printed == "['ok', 'ok', 'ok'] OFF"
    assert warned.count("MKL was used before integrand was imported") == 1


PORTABLE = {
    "name": "t",
    "source": {"uri": "d"},
    "output": {"uri": "o"},
    "compute": {"reproducible": "portable"},
    "inputs": [{"name": "x", "columns": ["a"]}],
    "model": {"kind": "torchscript", "uri": "m"},
}


@needs_mkl
def test_portable_kernels_are_taken_whatever_was_set() -> None:
    code = f"""
from integrand.schemas.specs.job import parse_spec
from integrand.service.planning.demands import settle_kernels
from integrand.workers import kernels
from integrand.workers.shards.numerics import processor
settle_kernels(parse_spec({PORTABLE}))
print(kernels.in_force().portable, processor("cpu"))
"""
    names = {
        told(code, MKL_CBWR=value, ATEN_CPU_CAPABILITY=capability)[0]
        for value, capability in ((None, None), ("AUTO,STRICT", "default"))
    }
    assert names == {f"True x86_64 {kernels.portable_name()}"}


@needs_mkl
def test_portable_kernels_that_come_too_late_are_refused() -> None:
    code = f"""
import torch
torch.rand(9, 9) @ torch.rand(9, 9)
from integrand.schemas.specs.job import parse_spec
from integrand.service.planning.demands import settle_kernels
try:
    settle_kernels(parse_spec({PORTABLE}))
except ValueError as error:
    print(error)
"""
    printed = told(code)[0]
    assert f"expected: the kernels {kernels.portable_name()}" in printed
    assert "in a process of its own" in printed


def test_children_are_asked_for_what_this_process_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (kernels.MKL, kernels.ATEN, kernels.ONEDNN):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    kernels.ask()
    assert kernels.asked() == dict(kernels.STRICT)
    monkeypatch.setenv(kernels.MKL, "AUTO")
    kernels.ask()
    assert kernels.asked() == {kernels.MKL: "AUTO"}


@pytest.mark.parametrize("in_use", [False, True])
def test_cublas_is_asked_for_repeatable_products_before_cuda_is_used(
    monkeypatch: pytest.MonkeyPatch, in_use: bool
) -> None:
    """Later it would come too late, and would hide that it was missing."""
    monkeypatch.setenv(kernels.CUBLAS, "")
    monkeypatch.delenv(kernels.CUBLAS)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: in_use)
    kernels.ask()
    assert os.environ.get(kernels.CUBLAS) == (None if in_use else ":4096:8")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (":4096:8", None),
        (":16:8", None),
        (None, "CUDA was used before integrand was imported"),
        (":0:0", "your own setting"),
    ],
)
def test_products_that_may_not_repeat_on_cuda_are_told_once(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, words: str | None
) -> None:
    monkeypatch.setenv(kernels.CUBLAS, setting or "")
    if setting is None:
        monkeypatch.delenv(kernels.CUBLAS)
    monkeypatch.setattr(kernels, "objection", lambda found: None)
    kernels.warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for device in ("cpu", "cuda", "cuda"):
            kernels.warn_once(device)
    kernels.warn_once.cache_clear()
    texts = [str(warning.message) for warning in seen]
    if words is None:
        assert texts == []
        return
    (text,) = texts
    assert words in text
    assert "CUBLAS_WORKSPACE_CONFIG=:4096:8" in text


@pytest.mark.parametrize("to_be_had", [True, False])
@pytest.mark.parametrize("before", [{}, {kernels.MKL: "AUTO"}], ids=["nothing", "AUTO"])
def test_portable_kernels_are_asked_for_as_long_as_they_are_to_be_had(
    monkeypatch: pytest.MonkeyPatch, to_be_had: bool, before: dict[str, str]
) -> None:
    """A refused job left its wish behind, and the next one of the process was planned with it."""
    for name in (kernels.MKL, kernels.ATEN, kernels.ONEDNN):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    there = Kernels(
        kernels.PORTABLE[kernels.MKL], "AVX2", kernels.PORTABLE[kernels.ONEDNN] if to_be_had else ""
    )
    monkeypatch.setattr(kernels, "in_force", lambda: there)
    assert kernels.ask_portable() == there
    assert kernels.asked() == (dict(kernels.PORTABLE) if to_be_had else before)


@pytest.mark.parametrize(
    ("found", "name", "strict", "portable"),
    [
        (Kernels("AUTO,STRICT", "AVX512", ""), "MKL AUTO,STRICT AVX512", True, False),
        (Kernels("OFF", "DEFAULT", ""), "MKL OFF", False, False),
        (
            Kernels("AVX2,STRICT", "AVX2", "AVX2"),
            "MKL AVX2,STRICT oneDNN up to AVX2 AVX2",
            True,
            False,
        ),
        (
            Kernels("COMPATIBLE", "AVX2", "AVX2"),
            "MKL COMPATIBLE oneDNN up to AVX2 AVX2",
            True,
            True,
        ),
        (Kernels("", "DEFAULT", ""), "", True, False),
    ],
    ids=str,
)
def test_kernels_have_names(found: Kernels, name: str, strict: bool, portable: bool) -> None:
    assert (str(found), found.strict, found.portable) == (name, strict, portable)


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize("features", [5, 7, 11, 13, 30, 50])
@pytest.mark.parametrize("rows", [16, 256, 1024])
def test_small_networks_keep_their_bits_in_full_step_batches(features: int, rows: int) -> None:
    """Row lengths that fill no whole vector: with plain kernels of MKL two thirds of these depend
    on place.
    """
    torch.manual_seed(0)
    for width in (10, 16, 23):
        model = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, 2)).eval()
        found = measure_repeatability(
            model,
            RowTensors((torch.randn(24, features),), target=torch.ones(24, 1, dtype=torch.int64)),
            rows,
        )
        assert found.bitwise


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize(
    "kind", ["gru", "lstm", "attention", "convolutions", "depthwise", "conv1d"]
)
@pytest.mark.parametrize("rows", [16, 64])
def test_layers_of_every_kind_keep_their_bits(kind: str, rows: int) -> None:
    """MKL for products, oneDNN for convolutions: both at odd sizes."""
    torch.manual_seed(0)
    module, shape = {
        "gru": (nn.GRU(4, 9, batch_first=True), (5, 4)),
        "lstm": (nn.LSTM(4, 9, batch_first=True), (5, 4)),
        "attention": (
            nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, activation="gelu"),
            (5, 12),
        ),
        "convolutions": (
            nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.SiLU(), nn.Conv2d(5, 7, 2)),
            (1, 9, 9),
        ),
        "depthwise": (
            nn.Sequential(
                nn.Conv2d(3, 17, 3, stride=2), nn.SiLU(), nn.Conv2d(17, 17, 3, groups=17)
            ),
            (3, 17, 17),
        ),
        "conv1d": (nn.Sequential(nn.Conv1d(3, 7, 5), nn.SiLU(), nn.Conv1d(7, 5, 3)), (3, 20)),
    }[kind]
    module.eval().requires_grad_(False)

    def forward(x: torch.Tensor) -> torch.Tensor:
        out = module(x)
        return (out[0] if isinstance(out, tuple) else out).flatten(1).sum(1)

    assert measure_repeatability(forward, RowTensors((torch.randn(24, *shape),)), rows).bitwise
