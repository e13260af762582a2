"""The certificate of smooth integrands, on integrands whose integrals are known: every promise of
its functionals, and that the true error stays below the deviation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.polynomial import legendre
from numpy.typing import NDArray
from torch import Tensor

from integrand.workers.quadrature.noise import Noise
from integrand.workers.quadrature.rules import patterson
from integrand.workers.quadrature.smooth import (
    NARROW,
    SmoothEstimate,
    SpectralLevel,
    estimate_smooth,
    local_gaps,
    moving_window,
    spectral_levels,
)
from tests.problems import FAMILIES, Integrand, jumping, polynomial, tagged

Floats = NDArray[np.float64]
LEVELS = spectral_levels()
each_level = pytest.mark.parametrize("level", LEVELS, ids=lambda level: str(level.count))


def judge(level: SpectralLevel, integrand: Integrand) -> tuple[SmoothEstimate, float]:
    """The estimate of one row, and its true error in the L1 norm; f is the sum of the
    antiderivatives.
    """
    nodes = patterson().nodes[: level.count]
    gradients = integrand.gradient(nodes)
    f = integrand.primitive(np.array([*nodes, 0.0, 1.0])).sum(1)
    estimate = estimated(level, gradients[None], f[None])
    found = estimate.attributions[0].numpy()
    return estimate, float(np.abs(found - integrand.exact).sum())


def estimated(level: SpectralLevel, gradients: Floats, f: Floats) -> SmoothEstimate:
    """Of gradients [rows, nodes, features], and of f at the nodes and both ends [rows, nodes +
    2].
    """
    slopes = torch.tensor(gradients.sum(2))
    found = level.functionals @ torch.tensor(gradients)
    return estimate_smooth(level, found, slopes, along(level, f))


def along(level: SpectralLevel, f: Floats) -> torch.Tensor:
    values = torch.tensor(f)
    return level.along_path(values[:, :-2], values[:, -2], values[:, -1])


def noisy(level: SpectralLevel, size: float, jump: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of 64 rows, whose integrand is linear but for a jump at 0.4 and carries rounding of
    relative size `size`, as functionals, slopes and f.
    """
    random = np.random.default_rng(0)
    nodes = patterson().nodes[: level.count]
    exact = 1 + 0.1 * nodes + jump * (nodes > 0.4)
    rounding = random.normal(size=(64, level.count, 32)) * np.sqrt(np.pi / 2)
    gradients = torch.tensor(exact[:, None] * (1 + size * rounding))
    places = np.array([*nodes, 0.0, 1.0])
    f = 32 * (places + 0.05 * places**2 + jump * np.maximum(places - 0.4, 0))
    values = np.broadcast_to(f, (64, len(f))).copy()
    values[:, :-2] += 0.1 * random.normal(size=(64, level.count)) * np.sqrt(np.pi / 2)
    return level.functionals @ gradients, gradients.sum(2), along(level, values)


def noise(gradients: float, values: float, counted: float) -> Noise:
    every = [torch.full((64,), of, dtype=torch.float64) for of in (gradients, values, counted)]
    return Noise(*every)


@each_level
def test_what_is_no_louder_than_rounding_says_nothing(level: SpectralLevel) -> None:
    """Rounding of 1% in gradients and of 0.1 in f, of 32, in a linear integrand."""
    found = noisy(level, 0.01)
    loud = estimate_smooth(level, *found)
    quiet = estimate_smooth(level, *found, noise=noise(0.01, 0.1, 1.0))
    assert (loud.deviation > 0.01 * 33.6).all()
    assert quiet.deviation.median() < 0.1 * loud.deviation.median()
    assert not quiet.drowned.any()
    assert torch.equal(quiet.attributions, loud.attributions)


@each_level
def test_rounding_hides_no_more_of_the_gaps_than_is_counted(level: SpectralLevel) -> None:
    found = noisy(level, 1e-4)
    loud = estimate_smooth(level, *found)
    quiet = estimate_smooth(level, *found, noise=noise(1e-4, 0.1, 1e-3))
    assert (quiet.deviation > loud.deviation - 1e-3 * 34).all()
    assert quiet.drowned.all()


@each_level
def test_a_kink_that_is_louder_than_rounding_is_heard(level: SpectralLevel) -> None:
    found = noisy(level, 1e-3, jump=1.0)
    quiet = estimate_smooth(level, *found, noise=noise(1e-3, 0.1, 1.0))
    error = (quiet.attributions - (1.05 + 0.6)).abs().sum(1)
    assert (quiet.deviation > error).all()


@each_level
def test_f_at_both_ends_is_exact_and_counts_however_loud_it_is_between(
    level: SpectralLevel,
) -> None:
    found, slopes, path = noisy(level, 1e-4)
    path[:, -1] += 5
    estimate = estimate_smooth(level, found, slopes, path, noise(1e-4, 100.0, 100.0))
    assert (estimate.deviation > 4.5).all()


# --- functionals -------------------------------------------------------------------------------


def test_levels_are_pattersons_from_seven_nodes_on() -> None:
    assert [(level.count, level.degree) for level in LEVELS] == [
        (7, 11),
        (15, 23),
        (31, 47),
        (63, 95),
    ]


@each_level
def test_functionals_are_integrals_of_levels_and_coefficients(level: SpectralLevel) -> None:
    """Each exact for all polynomials up to its own degree; coefficients for all up to the last of
    them.
    """
    integrals = 4 if level.count >= 31 else 2
    assert level.integrals == integrals
    last = level.middle + len(level.functionals) - integrals - 1
    assert level.degree // 2 <= last < level.count
    series = np.random.default_rng(1).standard_normal((last + 1, 4))
    found = _functionals(level, series)
    np.testing.assert_allclose(found[0], series[0], atol=1e-12)
    np.testing.assert_allclose(found[integrals:], series[level.middle :], atol=1e-11)
    for row, nodes in enumerate([level.count // 2**before for before in range(integrals)]):
        degree = (3 * nodes + 1) // 2
        np.testing.assert_allclose(
            _functionals(level, series[: degree + 1])[row], series[0], atol=1e-12
        )


def _functionals(level: SpectralLevel, series: Floats) -> Floats:
    nodes = 2 * patterson().nodes[: level.count] - 1
    return level.functionals.numpy() @ legendre.legval(nodes, series).T


@each_level
def test_coarser_integrals_read_no_new_node(level: SpectralLevel) -> None:
    for row in range(1, level.integrals):
        count = level.count // 2**row
        assert level.functionals[row, :count].all()
        assert not level.functionals[row, count:].any()


@each_level
def test_cells_sum_to_the_weights(level: SpectralLevel) -> None:
    """The integrals between neighbouring nodes add up to the rule."""
    assert level.cells.shape == (level.count + 1, level.count)
    np.testing.assert_allclose(level.cells.sum(0), level.functionals[0], atol=1e-11)
    np.testing.assert_allclose(level.cells.sum(1), np.diff(_places(level)), atol=1e-11)
    np.testing.assert_allclose(level.places, _places(level), atol=1e-15)
    assert (np.diff(patterson().nodes[level.order]) > 0).all()


def _places(level: SpectralLevel) -> Floats:
    return np.concatenate([[0.0], np.sort(patterson().nodes[: level.count]), [1.0]])


@each_level
def test_local_gaps_of_polynomials_vanish(level: SpectralLevel) -> None:
    """f is the exact antiderivative: neighbouring nodes agree up to half the rule's degree, not for
    all that it integrates.
    """
    for degree in (0, level.degree // 2):
        assert np.abs(_gaps(level, polynomial(degree))).max() < 1e-12
    beyond = _gaps(level, polynomial(level.count + 1))
    assert np.abs(beyond).max() > 1e-6
    assert abs(beyond.sum()) < 1e-10  # the rule itself is exact there: only the local gaps tell


def _gaps(level: SpectralLevel, integrand: Integrand) -> Floats:
    nodes = patterson().nodes[: level.count]
    f = integrand.primitive(np.array([*nodes, 0.0, 1.0])).sum(1)
    slopes = torch.tensor(integrand.gradient(nodes).sum(1))[None]
    return local_gaps(level, slopes, along(level, f[None])).numpy()


@each_level
def test_local_gaps_sum_to_the_gap_with_its_sign_turned(level: SpectralLevel) -> None:
    integrand = next(FAMILIES["runge"].draw(3, 5))
    nodes = patterson().nodes[: level.count]
    gap = (level.functionals[0].numpy() @ integrand.gradient(nodes)).sum() - integrand.exact.sum()
    assert _gaps(level, integrand).sum() == pytest.approx(-gap, abs=1e-11)


# --- the estimate on analytic integrands -------------------------------------------------------


@each_level
@pytest.mark.parametrize("family", tagged("analytic"))
@pytest.mark.parametrize("features", [1, 3, 20])
def test_the_true_error_stays_below_the_deviation(
    level: SpectralLevel, family: str, features: int
) -> None:
    """200 integrands of each family, from nearly constant to hopeless at this level. Tried on 1,000
    of each as well.
    """
    draws = FAMILIES[family].draw(level.count, features)
    for _ in range(200):
        integrand = next(draws)
        estimate, error = judge(level, integrand)
        rounding = 1e-12 * np.abs(integrand.primitive(np.array([0.0, 0.5, 1.0]))).sum()
        assert error <= estimate.deviation[0] + rounding
        assert estimate.likely[0] <= estimate.deviation[0]


def test_what_decays_is_foreseen_to_many_digits() -> None:
    """e^α: 15 nodes are certified to 1e-12, though the tail of the spectrum itself is larger."""
    estimate, error = judge(
        LEVELS[1], Integrand(lambda a: np.exp(a)[:, None], lambda a: np.exp(a)[:, None])
    )
    assert error < 1e-14
    assert estimate.deviation[0] < 1e-12
    assert estimate.converging[0]


@each_level
@pytest.mark.parametrize("rounding", [6e-8, 1e-6])
def test_rounding_of_gradients_is_not_blown_up(level: SpectralLevel, rounding: float) -> None:
    """e^α in 96 features, each gradient off by float32's rounding or by what a deep network makes
    of it.
    """
    draw, nodes = np.random.default_rng(0), patterson().nodes[: level.count]
    gradients = np.exp(nodes)[:, None] * (1 + rounding * draw.standard_normal((level.count, 96)))
    f = (
        96
        * np.exp(np.array([*nodes, 0.0, 1.0]))
        * (1 + rounding * draw.standard_normal(level.count + 2))
    )
    estimate = estimated(level, gradients[None], f[None])
    assert estimate.deviation[0] < 3 * level.count * rounding * 96 * np.expm1(1)


@each_level
def test_nothing_at_all_is_certain(level: SpectralLevel) -> None:
    estimate, error = judge(
        level, Integrand(lambda a: np.zeros((len(a), 2)), lambda a: np.zeros((len(a), 2)))
    )
    assert (estimate.deviation[0], error) == (0, 0)
    assert estimate.converging[0]


def test_rows_are_judged_one_by_one() -> None:
    level, draws = LEVELS[1], FAMILIES["runge"].draw(7, 4)
    integrands = [next(draws) for _ in range(5)]
    nodes = patterson().nodes[: level.count]
    gradients = np.stack([i.gradient(nodes) for i in integrands])
    f = np.stack([i.primitive(np.array([*nodes, 0.0, 1.0])).sum(1) for i in integrands])
    together = estimated(level, gradients, f)
    for row, integrand in enumerate(integrands):
        alone = judge(level, integrand)[0].deviation.item()
        assert together.deviation[row].item() == pytest.approx(alone, rel=1e-12)


# --- the estimate on kinked integrands ---------------------------------------------------------


def false_certificate(level: SpectralLevel, integrand: Integrand) -> bool:
    """Whether the row would be certified to some tolerance below its true error; a hair above
    counts as honest.
    """
    estimate, error = judge(level, integrand)
    return bool(error > 1.0001 * max(estimate.deviation[0], 1e-12)) and bool(
        estimate.deviation[0] <= 1e-2 * estimate.attributions.abs().sum()
    )


@each_level
@pytest.mark.parametrize("features", [1, 2, 8, 96])
@pytest.mark.parametrize("count", [2, 5, 20, 100])
def test_kinks_are_not_certified_below_their_error(
    level: SpectralLevel, features: int, count: int
) -> None:
    draw = np.random.default_rng([level.count, features, count])
    assert not any(
        false_certificate(level, jumping(draw.uniform(0, 1, count), features, draw))
        for _ in range(100)
    )


@each_level
@pytest.mark.parametrize("features", [1, 2, 8, 96])
def test_a_lone_jump_between_two_nodes_is_seen(level: SpectralLevel, features: int) -> None:
    draw = np.random.default_rng([level.count, features])
    inner = _places(level)[[1, -2]]
    for _ in range(200):
        assert not false_certificate(level, jumping(draw.uniform(*inner, 1), features, draw))


@each_level
def test_a_lone_jump_beyond_the_outermost_node_is_seen_in_f_alone(level: SpectralLevel) -> None:
    """All gradients are alike, so f(x) is all that tells: by no more than what the features' errors
    add up to. With features that cancel it tells nothing, and the row is certified. A tested
    estimate, not a proof.
    """
    place = np.array([(1 + _places(level)[-2]) / 2])

    def integrand(one: float, other: float) -> Integrand:
        sizes = np.array([one, other])
        return Integrand(
            lambda a: np.ones(2) + (a[:, None] > place) * sizes,
            lambda a: np.ones(2) * a[:, None] + np.maximum(a[:, None] - place, 0) * sizes,
        )

    for sizes in ((5, 0), (5, 5), (5, -1)):
        estimate, error = judge(level, integrand(*sizes))
        assert estimate.deviation[0] >= error * abs(sum(sizes)) / (
            abs(sizes[0]) + abs(sizes[1])
        ) * (1 - 1e-6)
    fooled, error = judge(level, integrand(5, -5))
    assert fooled.deviation[0] < 1e-12 < 1e-5 < error


# --- where f moves -----------------------------------------------------------------------------


def window(level: SpectralLevel, f: Callable[[Floats], Floats]) -> tuple[int, int] | None:
    """Of one row, between two flat ones."""
    places = _places(level)
    flat = np.ones_like(places)
    found, exists = moving_window(level, torch.tensor(np.stack([flat, f(places), flat])))
    assert exists.tolist() in ([False, True, False], [False] * 3)
    left, right = found[1].tolist()
    return (left, right) if exists[1] else None


@each_level
@pytest.mark.parametrize("place", [0.003, 0.1, 0.31, 0.52, 0.77, 0.98, 0.9999])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_narrow_transition_is_found(level: SpectralLevel, place: float, sign: int) -> None:
    found = window(level, lambda a: sign / (1 + np.exp(-np.clip((a - place) * 4000, -700, 700))))
    assert found is not None
    left, right = found
    places = _places(level)
    assert 0 <= left < right <= level.count + 1
    assert places[left] <= place <= places[right]
    assert right - left <= 4


@each_level
def test_a_window_has_a_cell_to_spare_on_either_side(level: SpectralLevel) -> None:
    """f jumps between the third and the fourth node: the window is that cell and its neighbours."""
    jump = _places(level)[3:5].mean()
    assert window(level, lambda a: 1.0 * (a > jump)) == (2, 5)


@each_level
@pytest.mark.parametrize(
    "f",
    [
        lambda a: a,
        lambda a: -3 * a + 1,
        lambda a: a**2,
        np.cos,
        lambda a: np.sin(20 * a),
        np.zeros_like,
    ],
    ids=["ramp", "fall", "square", "cos", "wave", "constant"],
)
def test_what_moves_all_along_has_no_window(
    level: SpectralLevel, f: Callable[[Floats], Floats]
) -> None:
    assert window(level, f) is None


@each_level
def test_a_window_is_a_small_part_of_the_path(level: SpectralLevel) -> None:
    """f moves evenly over a stretch in the middle: found where the stretch is well below NARROW,
    not above it.
    """
    for width in (0.02, 0.1, 0.2, 0.4, 0.8):
        found = window(level, lambda a, w=width: np.clip((a - 0.5) / w, -0.5, 0.5))
        if width > 1.2 * NARROW:
            assert found is None
        elif level.count >= 31 and width < 0.8 * NARROW:
            assert found is not None
