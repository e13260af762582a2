"""Random, stateful and batch-coupled models are told from ordinary ones, whose bits stay with the
row.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.workers.models.repeatability import Repeatability, measure_repeatability
from integrand.workers.models.row_tensors import RowTensors

Model = Callable[..., Tensor]
SIZE = 16


def points(*shape: int, dtype: torch.dtype = torch.float32) -> RowTensors:
    return RowTensors(
        (torch.randn(12, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype),)
    )


def measured(
    forward: Model, batch: RowTensors | None = None, size: int = SIZE, **options: bool
) -> Repeatability:
    return measure_repeatability(forward, batch or points(4), size, **options)


class Experts(nn.Module):
    """Top-1 routing; an expert serves its first `capacity` rows and the others pass unchanged.
    Fedus et al. 2021, §2.2.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.capacity, self.router = capacity, nn.Linear(4, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.router(x).softmax(1)
        chosen = nn.functional.one_hot(gate.argmax(1), 4)
        place = (chosen.cumsum(0) * chosen).sum(1)
        served = torch.stack([expert(x) for expert in self.experts], 1)
        mixed = (served * (gate * chosen)[:, :, None]).sum(1)
        return torch.where(place[:, None] <= self.capacity, mixed, x).sum(1)


class Counting(nn.Module):
    """Adds how often it was called, from the `start`-th call on."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.square().sum(1) + (self.calls - self.start).clamp(min=0)


class Skipping(nn.Module):
    """A residual branch left out of whole batches, once in a hundred. Huang et al. 2016 (stochastic
    depth).
    """

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.rand(()) > 0.01
        return x.sum(1) + keep * x.square().sum(1)


def normalised(x: Tensor) -> Tensor:
    return nn.functional.batch_norm(x, None, None, training=True).square().sum(1)


def own_noise(x: Tensor) -> Tensor:
    """Seeded, so two runs agree; but a row's noise is its place's."""
    return (x * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)).sum(1)


def unseen(values: Tensor) -> Tensor:
    """Exactly zero, with the gradient of `values`."""
    return values - values.detach()


def without_statistics() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 1)
    ).eval()


RANDOM: dict[str, Model] = {
    "functional dropout": lambda x: nn.functional.dropout(x, training=True).sum(1),
    "noise": lambda x: (x + 0.01 * torch.randn_like(x)).sum(1),
    "sampling": lambda x: x[:, torch.randint(4, (2,))].sum(1),
    "a layer skipped now and then": Skipping(),
    "a train-mode dropout module": nn.Sequential(nn.Dropout(), nn.Linear(4, 1)),
    "a counter": Counting(0),
    "a counter that tells only late": Counting(8),
}
COUPLED: dict[str, Model] = {
    "softmax over the batch": lambda x: x.sum(1).softmax(0),
    "log-softmax over the batch": lambda x: x.log_softmax(0).sum(1),
    "centred by the batch": lambda x: (x - x.mean(0)).square().sum(1),
    "batch statistics": normalised,
    "train-mode batch norm": nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)),
    "batch norm without running statistics": without_statistics(),
    "divided by the batch's maximum": lambda x: x.square().sum(1) / x.abs().max(),
    "divided by the largest feature of the batch": lambda x: (x / x.amax(0)).square().sum(1),
    "sorted over the batch": lambda x: x.sort(0).values.sum(1) * 1.0,
    "ranked within the batch": lambda x: x.sum(1) * x[:, 0].argsort().argsort(),
    "running sum": lambda x: x.cumsum(0).square().sum(1),
    "the row before": lambda x: (x * x.roll(1, 0)).sum(1),
    "the last row alone": lambda x: torch.cat([x[:-1].sum(1), (x[-1:] * x[:1]).sum(1)]),
    "the number of a row": lambda x: x.sum(1) + torch.arange(len(x)),
    "noise by place": own_noise,
    "attention over rows": lambda x: (torch.softmax(x @ x.T, 1) @ x).sum(1),
    "expert capacity": Experts(capacity=SIZE // 4),
    "expert capacity seldom reached": Experts(capacity=SIZE - 1),
    "a gradient shared in the batch": lambda x: (
        x.square().sum(1) + unseen(x.mean(0).square()).sum()
    ),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_and_stateful_models_are_refused(name: str) -> None:
    with pytest.raises(
        SpecError, match=r"the same result for the same batch(.|\n)*dropout, noise"
    ) as refused:
        measured(RANDOM[name]).check()
    assert refused.value.next_step


@pytest.mark.parametrize("name", COUPLED)
def test_batch_coupled_models_are_refused(name: str) -> None:
    found = measured(COUPLED[name])
    assert found.again == 0
    with pytest.raises(
        SpecError, match=r"do not depend on the rows beside them(.|\n)*running statistics"
    ):
        found.check()


def test_capacity_that_neither_end_of_the_batch_asks_for() -> None:
    """Only rows between the first and the last want the crowded expert, and only their order
    decides who gets it.
    """
    batch = points(4)
    x = batch.inputs[0]
    threshold = float(x[[0, (SIZE - 1) % len(x)], 0].max())

    def forward(v: Tensor) -> Tensor:
        wants = v[:, 0] > threshold
        return v.sum(1) * ~(wants & (wants.cumsum(0) > 2))

    assert (x[:, 0] > threshold).sum() > 2
    with pytest.raises(SpecError, match="beside them"):
        measured(forward, batch).check()


@pytest.mark.parametrize("descending", [True, False])
def test_a_maximum_that_an_end_of_the_batch_holds(descending: bool) -> None:
    """Copies of the row that sets the maximum tell nothing: the other end must be tried too."""
    x = points(4).inputs[0][:SIZE].repeat(2, 1)[:SIZE]
    order = x.abs().amax(1).argsort(descending=descending)
    with pytest.raises(SpecError, match="beside them"):
        measured(
            lambda v: v.square().sum(1) / v.abs().max(), RowTensors((x[order],)), gradients=False
        ).check()


class Last(nn.Module):
    """A recurrent network's last state, and a linear layer."""

    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell, self.last = cell(6, 9, batch_first=True), nn.Linear(9, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cell(x)[0][:, -1])


def ordinary() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return {
        "mlp": (nn.Sequential(nn.Linear(13, 37), nn.GELU(), nn.Linear(37, 1)), (13,)),
        "wide": (
            nn.Sequential(nn.Linear(2000, 64), nn.Tanh(), nn.Dropout(), nn.Linear(64, 1)),
            (2000,),
        ),
        "convolutions": (
            nn.Sequential(
                nn.Conv2d(1, 5, 3),
                nn.BatchNorm2d(5),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(45, 1),
            ),
            (1, 8, 8),
        ),
        "lstm": (Last(nn.LSTM), (5, 6)),
        "gru": (Last(nn.GRU), (5, 6)),
        "transformer": (
            nn.Sequential(
                nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
                nn.Flatten(),
                nn.Linear(96, 1),
            ),
            (6, 16),
        ),
        "experts without a limit": (Experts(capacity=1000), (4,)),
    }


@pytest.mark.needs_strict_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ordinary())
def test_ordinary_models_keep_every_bit(name: str, dtype: torch.dtype) -> None:
    """In multiples of 16 rows: fewer, or odd, are rounded differently from place to place by some
    matrix kernels.
    """
    model, shape = ordinary()[name]
    model = model.to(dtype).eval()
    for size in (16, 48, 64):
        found = measured(model, points(*shape, dtype=dtype), size)
        found.check()
        assert found.bitwise


def test_rounding_by_place_is_no_coupling() -> None:
    """A row's place moves one last bit: not refused, and not called bitwise either."""
    tiny = torch.finfo(torch.float32).eps
    found = measured(lambda x: 1 + x.sigmoid().sum(1) + tiny * 2 * (torch.arange(len(x)) % 2))
    found.check()
    assert 0 < found.outputs < 10 * tiny
    assert not found.bitwise


def test_a_projection_that_the_model_seeds_itself_is_no_randomness() -> None:
    def projected(x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return (x @ torch.randn(4, 3)).square().sum(1)

    assert measured(projected).bitwise
    measured(projected).check()


def test_the_random_stream_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    measured(lambda x: x.sum(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_with_nan_outputs_are_compared_too() -> None:
    """The same rows are NaN in every batch: nothing moved. NaN that comes from a neighbour is a
    change.
    """
    batch = points(4)
    batch.inputs[0][:, 0].abs_()[5] *= -1
    assert measured(lambda x: x[:, 0].log() + x[:, 1], batch).bitwise
    with pytest.raises(SpecError, match="beside them"):
        measured(lambda x: x.sum(1) + x[:, 0].log().sum(), batch).check()


def test_what_goes_with_a_row_stays_with_it() -> None:
    scale = torch.rand(12, 3, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(12)[:, None] % 3
    batch = RowTensors(points(3).inputs, (), (scale,), targets)
    assert measured(lambda x, s: x.square() * s, batch).bitwise
    with pytest.raises(SpecError, match="beside them"):
        measured(lambda x, s: x.square() * s.softmax(0), batch).check()


def test_outputs_alone_cost_no_gradients() -> None:
    calls = []

    def spied(x: Tensor) -> Tensor:
        calls.append((len(x), torch.is_grad_enabled()))
        return x.softmax(0).sum(1)

    with pytest.raises(SpecError, match="beside them"):
        measured(spied, size=2, gradients=False).check()
    assert set(calls) == {(2, False)}
    assert len(calls) <= 7


def test_one_row_is_no_batch() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        measured(lambda x: x.sum(1), size=1)
