"""The contenders answer the same question in the same order, whatever they do inside."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parent))
from limits import fold, prepare, variants
from memory import STATUS, peak_bytes
from peers import Captum, Integrand, PlainLoop, tuned
from references import reference, relative_error
from zoo import Case, Family

from integrand.schemas.specs.accuracy import FixedSteps

SAME = Integrand(FixedSteps(rule="gauss_legendre", steps=50), "the same 50 nodes")


class Tokens(nn.Module):
    """A sum over unmasked tokens of tanh of their two numbers: `[rows, tokens, 2]` to
    `[rows, 1]`.
    """

    def forward(self, x, mask):
        return (torch.tanh(x * torch.tensor([1.0, 2.0]).to(x)).sum(2) * mask).sum(1, keepdim=True)


def tokens() -> Case:
    lengths = torch.tensor([9, 3, 17, 8])
    mask = torch.arange(20) < lengths[:, None]
    x = torch.randn(4, 20, 2, generator=torch.Generator().manual_seed(0)) * mask[..., None]
    return Case(
        "tokens", Tokens().eval(), x, torch.zeros(1, 20, 2), forward_args=(mask,), lengths=lengths
    )


def outputs() -> Case:
    case = Family("GELU", "probability", 5, (16,), 1.0).case(3, seed=0)
    return Case("outputs", case.model, case.inputs, case.baselines, outputs=(0, 1, 2))


@pytest.mark.parametrize("build", [tokens, outputs])
@pytest.mark.parametrize(
    "contender",
    [SAME, Captum(rows=2, batch=7), Captum(rows=2, batch=64, by_length=True), PlainLoop(500)],
    ids=lambda c: c.name,
)
def test_everyone_finds_the_reference(build, contender):
    case = build()
    exact = reference(case, 1e-6)
    outcome = contender(case)
    assert outcome.attributions.shape == case.repeated().inputs.shape
    close = 5e-3 if isinstance(contender, PlainLoop) else 1e-5
    assert relative_error(outcome.attributions, exact.attributions).max() < close
    assert len(outcome.evaluations) == case.repeated().rows


def test_tuning_takes_the_fewest_nodes_that_do():
    case = Family("GELU", "logit", 4, (16, 16), 1.0).case(20, seed=2)
    exact = reference(case, 1e-7)
    chosen = tuned(case, exact, 1e-4)
    assert chosen is not None
    assert relative_error(chosen(case).attributions, exact.attributions).max() <= 1e-4
    assert chosen.steps < 50
    assert tuned(case, exact, 1e-12) is None


def test_a_folded_model_is_the_same_function():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 4),
        nn.BatchNorm1d(4),
    )
    model[1].running_mean.uniform_()
    x = torch.randn(5, 1, 6, 6)
    folded = fold(model.eval())
    assert torch.allclose(folded(x), model(x), atol=1e-5)
    assert [node.target for node in folded.graph.nodes if node.op == "call_module"] == [
        "0",
        "2",
        "3",
        "4",
    ]


def test_the_limit_counts_a_forward_once_for_all_outputs():
    case = outputs()
    limit = prepare(case)
    assert limit.seconds([2.0], torch.full((9,), 50)) == 2.0 * 3 * 50
    assert len(list(variants(case))) == 2


@pytest.mark.skipif(not STATUS.exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_that_of_the_call():
    rows = 4000
    case = Case("wide", nn.Linear(1000, 1).eval(), torch.zeros(rows, 1000), torch.zeros(1, 1000))
    gained = peak_bytes(PlainRows(), case)
    assert gained is not None
    assert 0.9 < gained / (rows * 1000 * 4 * 3) < 1.5


class PlainRows:
    """Three copies of the inputs at once."""

    name = "three copies"

    def __call__(self, case: Case) -> list[torch.Tensor]:
        return [case.inputs + number for number in range(3)]
