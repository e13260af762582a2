"""What a notebook is told of a model that does not fit: the cause and the next step, instead of
what torch says.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Adaptive, FixedSteps
from integrand.workers.methods.attribution import attribute

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def net(outputs: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs)).eval()


NET, MIX = net(), torch.rand(5, 5, generator=torch.Generator().manual_seed(1))
LSTM, HIDDEN = nn.LSTM(4, 8, batch_first=True).eval(), torch.zeros(1, 3, 8)
SEQUENCES = torch.randn(7, 6, 4)


def raising(x: Tensor, condition: bool) -> Tensor:
    if condition:
        raise RuntimeError("not so many")
    return NET(x)


def recurrent(x: Tensor) -> Tensor:
    return LSTM(x, (HIDDEN, HIDDEN))[0][:, -1, 0]


def exported(train: bool, dynamic: bool) -> nn.Module:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)
    ).train(train)
    shapes = ({0: torch.export.Dim("rows")},) if dynamic else None
    return torch.export.export(model, (X,), dynamic_shapes=shapes).module()


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "rows are the nodes of a graph": (
        lambda: attribute(lambda h: torch.tanh(MIX @ h).sum(1), X),
        r"rows that do not depend(.|\n)*nodes of one graph",
    ),
    "two nodes": (
        lambda: attribute(lambda h: NET(torch.tanh(MIX[:2, :2] @ h)), X[:2]),
        "nodes of one graph",
    ),
    "a hidden state of fixed size": (
        lambda: attribute(recurrent, SEQUENCES[:3]),
        r"takes 3 rows(.|\n)*batch_rows=3",
    ),
    "such a state and other rows": (
        lambda: attribute(recurrent, SEQUENCES),
        r"takes 3 rows(.|\n)*batch_rows=3",
    ),
    "few rows at a time": (
        lambda: attribute(lambda x: raising(x, len(x) > 16), X),
        r"and not 48(.|\n)*batch_rows=16",
    ),
    "a static export": (
        lambda: attribute(exported(False, False), X),
        r"takes 5 rows(.|\n)*batch_rows=5",
    ),
    "an export in train mode": (
        lambda: attribute(exported(True, True), X),
        r"batch_norm, dropout(.|\n)*then torch\.export",
    ),
    "batch norm without statistics": (
        lambda: attribute(
            nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1)).eval(), X
        ),
        r"layer 0(.|\n)*track_running_stats=False",
    ),
    "a double model": (
        lambda: attribute(net().double(), X),
        r"the model has float64(.|\n)*float32(.|\n)*x\.double\(\)",
    ),
    "double rows": (
        lambda: attribute(net(), X.double()),
        r"the model has float32(.|\n)*float64(.|\n)*model\.double\(\)",
    ),
    "double rows of a function": (lambda: attribute(lambda x: NET(x), X.double()), "of one dtype"),
    "an int target for maps": (
        lambda: attribute(nn.Conv2d(1, 3, 1).eval(), torch.randn(2, 1, 4, 4), target=1),
        r"target=\(target, 0, 0\)",
    ),
    "no target for maps": (
        lambda: attribute(nn.Conv2d(1, 3, 1).eval(), torch.randn(2, 1, 4, 4)),
        r"\(0, 0, 0\) to \(2, 3, 3\)",
    ),
    "a squeezed row": (
        lambda: attribute(lambda x: NET(x).squeeze(), X[:1], batch_rows=1),
        r"\.squeeze\(-1\)",
    ),
    "a shape that does not fit": (
        lambda: attribute(NET, torch.randn(5, 3)),
        r"a forward pass over the rows(.|\n)*\[\[2, 3\]\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_does_not_fit_is_told_why(case: str) -> None:
    run, message = REFUSED[case]
    with pytest.raises(SpecError, match=message):
        run()


@pytest.mark.parametrize(
    ("forward", "cause"),
    [
        (lambda x: NET(nn.functional.dropout(x, 0.5)), "two runs that differ"),
        (lambda x: NET(x + 0.5 * torch.randn_like(x)), "two runs that differ"),
        (lambda x: NET(torch.tanh(x - x.mean(0)) * 3), "with its neighbours"),
    ],
    ids=["dropout", "noise", "centred rows"],
)
@pytest.mark.parametrize("rows", [1, 5])
def test_a_model_that_draws_or_mixes_rows_is_told_so_where_rows_do_not_converge(
    forward: Callable[..., Tensor], cause: str, rows: int
) -> None:
    torch.manual_seed(0)
    with pytest.raises(SpecError, match=cause):
        attribute(forward, X[:rows], accuracy=Adaptive(tolerance=1e-4, max_evaluations=31))


def test_rows_that_do_not_converge_for_other_reasons_stay_what_they_are() -> None:
    found = attribute(
        lambda x: ((9 * x) % 1).sum(1), X, accuracy=Adaptive(tolerance=1e-6, max_evaluations=31)
    )
    assert set(found.status) == {"not_converged"}


def test_what_the_model_raises_on_a_row_stays_what_it_is() -> None:
    rows = torch.cat([X, torch.full((1, 4), 2e3)])
    with pytest.raises(RuntimeError, match="not so many"):
        attribute(lambda x: raising(x, bool((x[:, 0] > 1e3).any())), rows)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_squeezed_output_is_no_matter_in_step_batches(rows: int) -> None:
    found, expected = attribute(lambda x: NET(x).squeeze(), X[:rows]), attribute(NET, X[:rows])
    assert torch.equal(found.attributions, expected.attributions)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", [3, 7])
def test_step_batches_that_the_model_takes_are_what_it_gets(rows: int) -> None:
    found = attribute(recurrent, SEQUENCES[:rows], batch_rows=3, accuracy=FixedSteps(steps=8))
    whole = attribute(
        lambda x: LSTM(x)[0][:, -1, 0],
        SEQUENCES[:rows],
        batch_rows=16,
        accuracy=FixedSteps(steps=8),
    )
    torch.testing.assert_close(found.attributions, whole.attributions)
    assert attribute(exported(False, False), X, batch_rows=5).status == ("ok",) * 5


@pytest.mark.filterwarnings("ignore")
def test_programs_without_a_mode_give_what_their_module_gives() -> None:
    """`ExportedProgram.module()` counts as train mode and refuses eval(); freezing takes the mode
    away.
    """
    model = net(2)
    program = torch.export.export(
        model, (X,), dynamic_shapes=({0: torch.export.Dim("rows")},)
    ).module()
    expected = attribute(model, X, target=1).attributions
    for same in (program, nn.Sequential(program), torch.jit.freeze(torch.jit.script(model))):
        torch.testing.assert_close(
            attribute(same, X, target=1).attributions, expected, rtol=1e-5, atol=1e-6
        )


# --- arguments that a model writes into --------------------------------------------------------


@pytest.mark.parametrize("accuracy", [Adaptive(), FixedSteps(steps=5)], ids=str)
def test_a_model_may_write_into_its_arguments(accuracy: Adaptive | FixedSteps) -> None:
    """Sixteen models of Hugging Face do: each pass gets copies, and the caller's tensors stay what
    they were.
    """

    def forward(x: Tensor, mask: Tensor) -> Tensor:
        mask *= 2
        return (x * mask).sum(1)

    x, mask = torch.ones(3, 4), torch.ones(3, 4)
    found = attribute(forward, x, forward_args=mask, accuracy=accuracy)
    assert torch.equal(found.attributions, torch.full((3, 4), 2.0))
    assert found.f_input.tolist() == [8, 8, 8]
    assert torch.equal(mask, torch.ones(3, 4))


@pytest.mark.parametrize(
    "first",
    [
        nn.ReLU(inplace=True),
        nn.LeakyReLU(inplace=True),
        nn.Hardtanh(inplace=True),
    ],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_a_first_layer_may_work_in_place(first: nn.Module, baseline: float) -> None:
    tail = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).eval()
    x = X.clone()
    found = attribute(
        nn.Sequential(first, tail).eval(), x, baselines=baseline, accuracy=FixedSteps(steps=20)
    )
    first.inplace = False  # type: ignore[assignment]
    plain = attribute(
        nn.Sequential(first, tail).eval(), X, baselines=baseline, accuracy=FixedSteps(steps=20)
    )
    first.inplace = True  # type: ignore[assignment]
    assert torch.equal(x, X)
    torch.testing.assert_close(found.attributions, plain.attributions)
