"""Networks of today's kinds, row by row against an integral made without the package."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.specs.accuracy import Adaptive
from integrand.schemas.tables import RowStatus
from integrand.workers.methods.attribution import attribute
from tests.peers.checking import check, flat, parts
from tests.peers.models import (
    F64,
    Mixed,
    Reader,
    Recurrent,
    conv_net,
    drawn,
    mlp,
    normal,
    pooled_net,
)
from tests.peers.references import kinked_integral, smooth_integral

Model = Callable[..., Tensor]


def check_network(
    forward: Model,
    inputs: tuple[Tensor, ...],
    baselines: tuple[Tensor, ...],
    *,
    kinked: bool,
    tolerance: float,
    forward_args: tuple[Tensor, ...] = (),
) -> None:
    """Output 1 of `forward`, row by row against an integral made without the package."""
    integral = kinked_integral if kinked else smooth_integral
    rows = []
    for i in range(len(inputs[0])):
        fixed = [a[i : i + 1] for a in forward_args]

        def explained(*points: Tensor, fixed: list[Tensor] = fixed) -> Tensor:
            return forward(*points, *[a.expand(len(points[0]), *a.shape[1:]) for a in fixed])[:, 1]

        rows.append(
            integral(
                explained, tuple(x[i : i + 1] for x in inputs), tuple(b[:1] for b in baselines)
            )
        )
    found = attribute(
        forward,
        inputs,
        baselines=tuple(b[:1] for b in baselines),
        target=1,
        forward_args=forward_args,
        accuracy=Adaptive(tolerance=tolerance, max_evaluations=4096),
    )
    assert {*found.status} == {RowStatus.ok}
    check(found, torch.stack(rows), tolerance)


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Tanh, nn.Softplus, nn.Mish])
def test_smooth_mlps(activation: type[nn.Module]) -> None:
    check_network(
        mlp(activation), (normal(6, 5),), (normal(1, 5, seed=1),), kinked=False, tolerance=1e-8
    )


def test_a_probability() -> None:
    model = nn.Sequential(mlp(nn.GELU), nn.Softmax(1)).eval()
    check_network(
        model, (2 * normal(6, 5),), (torch.zeros(1, 5, dtype=F64),), kinked=False, tolerance=1e-6
    )


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
def test_kinked_mlps(activation: type[nn.Module]) -> None:
    check_network(
        mlp(activation), (normal(4, 5),), (normal(1, 5, seed=1),), kinked=True, tolerance=1e-2
    )


def test_convolutions_with_batch_norm() -> None:
    check_network(
        conv_net(nn.SiLU),
        (normal(3, 2, 8, 8),),
        (torch.zeros(1, 2, 8, 8, dtype=F64),),
        kinked=False,
        tolerance=1e-8,
    )


def test_convolutions_with_kinks_and_max_pooling() -> None:
    check_network(
        pooled_net(),
        (normal(2, 1, 8, 8),),
        (torch.zeros(1, 1, 8, 8, dtype=F64),),
        kinked=True,
        tolerance=2e-2,
    )


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_recurrent_networks(cell: type[nn.RNNBase]) -> None:
    check_network(
        drawn(Recurrent(cell)),
        (normal(3, 5, 4),),
        (torch.zeros(1, 5, 4, dtype=F64),),
        kinked=False,
        tolerance=1e-8,
    )


def test_embeddings_of_a_transformer_with_a_mask() -> None:
    """Case 23: tokens are explained at the output of the embedding, padding masked, against the
    embedding of token 0.
    """
    model = drawn(Reader())
    ids = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]])
    mask, pad = ids > 0, torch.zeros_like(ids[:1])
    embedded, baseline = model.embedding(ids).detach(), model.embedding(pad).detach()
    check_network(
        model.read, (embedded,), (baseline,), kinked=False, tolerance=1e-6, forward_args=(mask,)
    )
    found = attribute(model.read, embedded, baselines=baseline, target=1, forward_args=mask)
    torch.testing.assert_close(
        found.f_input, model(ids, mask)[:, 1].detach(), rtol=1e-12, atol=1e-12
    )
    assert not found.attributions[1, 4:].any()


def test_numbers_an_image_and_a_category() -> None:
    """Integers go in as an argument, or at the output of their embedding; the model is the same."""
    model, category = drawn(Mixed()), torch.tensor([0, 3, 4])
    numbers, image = normal(3, 4), normal(3, 1, 4, 4, seed=1)
    found = attribute(
        model, (numbers, image), forward_args=category, accuracy=Adaptive(tolerance=1e-9)
    )
    for i in range(3):
        row = tuple(v[i : i + 1] for v in (numbers, image))
        exact = smooth_integral(
            lambda n, p, i=i: model(n, p, category[i].expand(len(n)))[:, 0],
            row,
            tuple(map(torch.zeros_like, row)),
        )
        torch.testing.assert_close(flat(parts(found))[i], exact, rtol=1e-8, atol=1e-11)
