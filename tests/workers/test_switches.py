"""Torch's switches: what a call on CUDA tensors has, and what its caller finds again."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.schemas.tables import RowStatus
from integrand.workers.methods import attribution
from integrand.workers.methods.attribution import Attribution, attribute, prepare
from integrand.workers.switches import nondeterministic_operations, pinned_on

CUDA = torch.device("cuda")
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHOW = """
import torch
from torch import backends as b
from integrand.workers import switches

def seen():
    found = []
    for read in (
        lambda: b.cuda.matmul.allow_tf32,
        lambda: b.cudnn.allow_tf32,
        torch.get_float32_matmul_precision,
        lambda: b.cuda.matmul.fp32_precision,
        lambda: b.cudnn.conv.fp32_precision,
        lambda: b.cudnn.rnn.fp32_precision,
        lambda: b.mkldnn.matmul.fp32_precision,
        lambda: b.cudnn.benchmark,
        torch.get_deterministic_debug_mode,
    ):
        try:
            found.append(read())
        except (AttributeError, RuntimeError) as error:
            found.append(type(error).__name__)
    return found

"""
"""Runs in a process of its own, since some settings of torch cannot be taken back."""


def run(code: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", SHOW + code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    return done.stdout.strip()


def precisions() -> list[object]:
    """Of float32 products on CUDA: matrix products, convolutions, recurrent layers."""
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return [backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32]
    owners = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    return [owner.fp32_precision for owner in owners]


def tf32_is_off() -> bool:
    return all(found in ("ieee", False) for found in precisions())


SETTINGS = [
    "pass",
    "b.cuda.matmul.allow_tf32 = True",
    "b.cudnn.allow_tf32 = False",
    "torch.set_float32_matmul_precision('medium')",
    "torch.set_float32_matmul_precision('high'); b.cudnn.benchmark = True",
    "torch.set_deterministic_debug_mode('error')",
    "torch.use_deterministic_algorithms(True, warn_only=True)",
]
NEWER = [
    "b.cuda.matmul.fp32_precision = 'tf32'",
    "b.cudnn.conv.fp32_precision = 'ieee'",
    "b.cudnn.fp32_precision = 'tf32'",
    "b.fp32_precision = 'tf32'",
    "b.cuda.matmul.allow_tf32 = True; b.cuda.matmul.fp32_precision = 'ieee'",
]
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    SETTINGS += NEWER


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_program_finds_its_own_settings_again(setting: str) -> None:
    """Either interface of torch may have been used, or both."""
    code = f"""
{setting}
before = seen()
with switches.pinned():
    precisions = seen()[3:6]
    assert set(precisions) <= {{"ieee", "AttributeError"}}, precisions
    assert not b.cudnn.benchmark
    assert torch.get_deterministic_debug_mode() >= 1
assert seen() == before, (before, seen())
try:
    with switches.pinned():
        raise KeyError
except KeyError:
    assert seen() == before, (before, seen())
print("done")
"""
    assert run(code) == "done"


def test_a_program_that_sets_nothing_may_read_either_interface_within_a_call() -> None:
    """The compiler reads the older one, and so does whoever switches cuDNN off for a while."""
    code = """
with switches.pinned():
    assert not b.cuda.matmul.allow_tf32 and not b.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
    with b.cudnn.flags(enabled=False):
        pass
print("done")
"""
    assert run(code) == "done"


def test_a_setting_above_an_operation_keeps_its_say() -> None:
    code = """
if hasattr(b.cuda.matmul, "fp32_precision"):
    b.fp32_precision = "tf32"
    with switches.pinned():
        pass
    b.fp32_precision = "ieee"
    assert b.cuda.matmul.fp32_precision == "ieee"
print("done")
"""
    assert run(code) == "done"


def test_on_the_cpu_nothing_is_touched() -> None:
    before = precisions()
    with pinned_on(torch.device("cpu")):
        assert precisions() == before


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1)).eval()


class Watched(nn.Module):
    """A model that notes at each pass whether the switches are a worker's."""

    def __init__(self) -> None:
        super().__init__()
        self.model = linear()
        self.seen: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        repeatable = torch.get_deterministic_debug_mode() == 1
        self.seen.append(tf32_is_off() and repeatable and not torch.backends.cudnn.benchmark)
        out: Tensor = self.model(x)
        return out


@pytest.mark.parametrize("verb", [attribute, prepare])
@pytest.mark.parametrize("cuda", [True, False], ids=["cuda", "cpu"])
def test_within_a_call_on_cuda_switches_are_a_workers(
    monkeypatch: pytest.MonkeyPatch, verb: object, cuda: bool
) -> None:
    """Tensors are on the CPU here, and taken for those of a device."""
    if cuda:
        monkeypatch.setattr(attribution, "pinned_on", lambda device: pinned_on(CUDA))
    torch.set_deterministic_debug_mode(0)
    before = precisions()
    model = Watched().eval()
    assert callable(verb)
    verb(model, torch.randn(3, 4))
    assert set(model.seen) == {cuda}
    assert precisions() == before
    assert torch.get_deterministic_debug_mode() == 0


def test_switches_are_put_back_where_a_model_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "pinned_on", lambda device: pinned_on(CUDA))
    before = precisions()

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("not today")

    with pytest.raises(ValueError, match="not today"):
        attribute(broken, torch.randn(3, 4))
    assert precisions() == before


def test_operations_without_a_deterministic_form_are_named_and_other_warnings_go_on() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pinned_on(CUDA), nondeterministic_operations() as names:
            torch.zeros(4).put_(torch.tensor([1]), torch.tensor([2.0]))
            warnings.warn("something else", stacklevel=1)
    assert names == {"put_"}
    assert [str(warning.message) for warning in seen] == ["something else"]


# --- what only a device can show ---------------------------------------------------------------


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(32 * 16 * 16, 10),
    ]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def whole(found: Attribution) -> Tensor:
    assert isinstance(found.attributions, Tensor)
    return found.attributions


@pytest.fixture
def as_torch_comes() -> None:
    """What a notebook has that has set nothing."""
    torch.set_deterministic_debug_mode(0)
    torch.backends.cudnn.allow_tf32 = True


@on_cuda
@pytest.mark.usefixtures("as_torch_comes")
def test_no_certificate_is_false_with_torchs_own_switches() -> None:
    """TF32 of cuDNN alone puts attributions off by 2e-4."""
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = convolutions()
    found = attribute(model.cuda(), x.cuda(), target=1, accuracy=Adaptive(tolerance=1e-4))
    exact = attribute(model.cpu().double(), x.double(), target=1, accuracy=FixedSteps(steps=32))
    difference = (whole(found).cpu().double() - whole(exact)).flatten(1).abs().sum(1)
    apart = difference / whole(exact).flatten(1).abs().sum(1)
    certified = torch.tensor([status == RowStatus.ok for status in found.status])
    assert certified.any()
    assert (apart[certified] <= 1e-4).all()


@on_cuda
@pytest.mark.usefixtures("as_torch_comes")
def test_bits_of_convolutions_repeat_with_torchs_own_switches() -> None:
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1)).cuda()
    model = convolutions().cuda()

    def once(rows: Tensor) -> Tensor:
        found = attribute(model, rows, target=1, accuracy=FixedSteps(steps=15), batch_rows=64)
        return whole(found)

    first = once(x)
    assert torch.equal(once(x), first)
    assert torch.equal(once(x.flip(0)).flip(0), first)
