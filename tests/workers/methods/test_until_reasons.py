"""Rows that go on until their reasons are certain: what that costs, what it changes, and what it
leaves as it is.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Adaptive
from integrand.schemas.tables import RowStatus
from integrand.workers.engine.prepared import Prepared
from integrand.workers.engine.reason_margins import ReasonSums
from integrand.workers.engine.row_results import RowResults
from integrand.workers.methods.adaptive import until_reasons
from integrand.workers.methods.arguments import row_tensors
from integrand.workers.methods.attribution import attribute, prepared_for
from integrand.workers.methods.explaining import explain
from integrand.workers.methods.table import method_of
from integrand.workers.models.outputs import Forward
from integrand.workers.reason_codes.candidates import Candidate, Candidates
from integrand.workers.rewriting.hoisting import hoist

FEATURES = 8
REASONS = Candidates(
    features=tuple("abcdefgh"),
    each=tuple(Candidate(f"R{i}", None, (i,)) for i in range(FEATURES)),
    k=3,
    sign=-1,
)
LOOSE = Adaptive(tolerance=1e-2)
ASKED = Adaptive(tolerance=1e-2, until="reasons")


@cache
def model(activation: type[nn.Module] = nn.GELU) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(FEATURES, 32), activation(), nn.Linear(32, 16), activation()]
    return nn.Sequential(*layers, nn.Linear(16, 1), nn.Flatten(0), nn.Sigmoid()).eval()


def rows(count: int) -> Tensor:
    return 3 * torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(1))


def explained(
    forward: Forward, x: Tensor, accuracy: Adaptive, *, batch_rows: int = 64
) -> RowResults:
    with torch.inference_mode(False):
        given = row_tensors(x, None, (), None)
        method = until_reasons(method_of(accuracy), REASONS)
        prepared = prepared_for(forward, given, method)
        return explain(prepared, given, method, batch_rows=batch_rows).results.flat()


def several(forward: Forward, x: Tensor, targets: list[int]) -> RowResults:
    """Results `[rows, targets]`."""
    with torch.inference_mode(False):
        given = row_tensors(x, None, (), targets)
        method = until_reasons(method_of(ASKED), REASONS)
        return explain(Prepared(forward), given, method, batch_rows=64).results


def certain(found: RowResults) -> np.ndarray:
    values = found.attributions[0].astype(float)
    still = torch.zeros(values.shape, dtype=torch.bool)
    margin = ReasonSums.of(REASONS).margin(torch.from_numpy(values), still).numpy()
    return margin > found.error_estimate * np.abs(values).sum(1)


def test_rows_go_on_until_their_reasons_are_certain() -> None:
    """Fewer evaluations than a finer tolerance takes, and more reasons are certain."""
    x = rows(400)
    loose, asked = explained(model(), x, LOOSE), explained(model(), x, ASKED)
    finer = explained(model(), x, Adaptive(tolerance=1e-3))
    assert set(asked.status) == {RowStatus.ok}
    assert 0.8 < certain(loose).mean() < certain(finer).mean() < certain(asked).mean()
    assert certain(asked).mean() > 0.99
    assert loose.evaluations.mean() < asked.evaluations.mean() < finer.evaluations.mean()


def test_rows_whose_reasons_are_certain_already_keep_every_bit() -> None:
    x = rows(200)
    loose, asked = explained(model(), x, LOOSE), explained(model(), x, ASKED)
    same = certain(loose)
    assert np.array_equal(loose.attributions[0][same], asked.attributions[0][same])
    assert np.array_equal(loose.evaluations[same], asked.evaluations[same])
    assert (asked.evaluations[~same] > loose.evaluations[~same]).all()


def test_kinked_rows_go_on_with_the_grid_and_stop_where_it_is_in_vain() -> None:
    """A row is not given up for its reasons before it is within the tolerance."""
    x, relu = rows(60), model(nn.ReLU)
    wide = {"tolerance": 5e-2, "max_evaluations": 512}
    loose, asked = (explained(relu, x, Adaptive(**wide, until=u)) for u in ("tolerance", "reasons"))
    assert (loose.status == RowStatus.ok).all()
    assert (asked.status == RowStatus.ok).all()
    assert certain(asked).sum() > certain(loose).sum()
    open_ = ~certain(asked)
    assert (asked.evaluations[open_] < 512).any()


def test_bits_depend_on_the_row_alone() -> None:
    x = rows(40)
    together = explained(model(nn.ReLU), x, ASKED)
    order = np.random.default_rng(0).permutation(40)
    shuffled = explained(model(nn.ReLU), x[order], ASKED)
    halves = [explained(model(nn.ReLU), x[part], ASKED) for part in (slice(17), slice(17, 40))]
    for found in (shuffled.take(np.argsort(order)), RowResults.concat(halves)):
        assert np.array_equal(found.attributions[0], together.attributions[0])
        assert np.array_equal(found.evaluations, together.evaluations)


def test_targets_of_one_row_go_on_each_for_itself() -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(FEATURES, 32), nn.GELU(), nn.Linear(32, 3), nn.Tanh()).eval()
    x = rows(60)
    together = several(net, x, [0, 1, 2])
    for target in range(3):
        alone = several(net, x, [target])
        assert np.array_equal(together.evaluations[:, target], alone.evaluations[:, 0])
        for mine, theirs in zip(together.attributions, alone.attributions, strict=True):
            assert np.array_equal(mine[:, target], theirs[:, 0])
    assert len(np.unique(together.evaluations)) > 1


def test_behind_a_hoisted_prefix_reasons_are_of_features() -> None:
    x = rows(100)
    with torch.inference_mode(False):
        prepared = Prepared(model(), hoist(model(), (x,)))
    assert prepared.hoisted is not None
    plain, hoisted = explained(model(), x, ASKED), explained(prepared, x, ASKED)
    assert np.array_equal(certain(plain), certain(hoisted))
    assert np.allclose(plain.attributions[0], hoisted.attributions[0], atol=1e-5)


def test_a_tie_ends_at_what_rounding_leaves() -> None:
    """Two features that no number of evaluations tells apart."""
    x = torch.full((2, FEATURES), -0.5, dtype=torch.float64)
    found = explained(lambda v: v.sum(1).tanh(), x, ASKED)
    assert (found.status != RowStatus.not_converged).all()
    assert not certain(found).any()
    assert (found.evaluations < 512).all()


def test_a_call_has_no_reasons_to_go_on_for() -> None:
    with pytest.raises(SpecError, match=r"output\.reasons"):
        attribute(model(), rows(4), accuracy=ASKED)
