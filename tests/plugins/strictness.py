"""Marks tests that need kernels which leave a row's place out of account:
`@pytest.mark.needs_strict_kernels`.

Whether kernels do is measured, not read off a setting: other processors, and libraries other than
MKL, have settings of their own. Where they do not, the test is skipped, and its reason names them.
"""

from functools import cache

import pytest
import torch
from torch import nn

from integrand.workers import kernels
from integrand.workers.models.repeatability import measure_repeatability
from integrand.workers.models.row_tensors import RowTensors


@cache
def loose_kernels() -> str | None:
    """The kernels in force, if rows of some small network get other bits at other places; None
    where none does.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        strict = all(
            _keeps_bits(features, rows) for features in (5, 7, 13, 30) for rows in (16, 64)
        )
    finally:
        torch.set_num_threads(before)
    return None if strict else str(kernels.in_force())


def _keeps_bits(features: int, rows: int) -> bool:
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(features, 23), nn.GELU(), nn.Linear(23, 1)).eval()
    points = torch.randn(24, features)
    torch.set_rng_state(state)
    return measure_repeatability(model, RowTensors((points,)), rows).bitwise


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs_strict_kernels: kernels must not round a row by its place in a batch"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_strict_kernels") and loose_kernels():
        pytest.skip(
            f"needs kernels that do not round a row by its place; in force: {loose_kernels()}"
        )
