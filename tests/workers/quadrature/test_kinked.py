"""Grids that grow by classes: their sums are read as explicit grids would be, and the estimate is a
few times the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from integrand.workers.quadrature.kinked import (
    CLASSES,
    COLUMNS,
    EVEN,
    FIRST_EDGE,
    JUDGED,
    LAST_EDGE,
    START,
    GridStage,
    _pattern,
    class_sums,
    estimate_kinked,
    grid_stages,
)

Floats = NDArray[np.float64]
STAGES = grid_stages(600)


def grow(
    gradient: Callable[[Floats], Floats], most: int = 600
) -> Iterator[tuple[GridStage, Floats]]:
    """Every stage with the sums per column that the engine keeps; `gradient` maps nodes [n] to [n,
    features].
    """
    sums = None
    for stage in grid_stages(most):
        values = gradient(stage.nodes)
        sums = np.zeros((COLUMNS, values.shape[1])) if sums is None else sums
        sums = folded(sums) if stage.fold else sums
        np.add.at(sums, stage.columns, values)
        for edge, column in zip(stage.edges, (FIRST_EDGE, LAST_EDGE), strict=True):
            if edge is not None:
                sums[column] = values[edge]
        yield stage, sums


def folded(sums: Floats) -> Floats:
    return class_sums(torch.tensor(sums)).numpy()


def weights(stage: GridStage) -> Floats:
    return stage.readings[0].numpy()


def contrasts(stage: GridStage) -> Floats:
    return stage.readings[1:].numpy()


def estimated(stage: GridStage, read: Floats, gap: Floats) -> Floats:
    """Deviations, where completeness misses by so much."""
    change = read[:, 0].sum(1) - gap
    return estimate_kinked(stage, torch.tensor(read), torch.tensor(change)).deviation.numpy()


def nodes_until(stage: GridStage) -> Floats:
    return np.sort(np.concatenate([s.nodes for s in STAGES if s.count <= stage.count]))


def shares(nodes: Floats) -> Floats:
    """The part of the path that is nearest to each node."""
    return np.diff(np.concatenate([[0.0], (nodes[1:] + nodes[:-1]) / 2, [1.0]]))


def classes_of(stage: GridStage, nodes: Floats) -> NDArray[np.int64]:
    """Classes on the fine grid that the stage belongs to; the first grid's are those of one twice
    as fine.
    """
    fine = 2 ** int(np.ceil(np.log2(max(stage.cells, 2 * START))))
    return np.round(nodes * fine).astype(np.int64) % CLASSES


def wild(nodes: Floats) -> Floats:
    """Two features without any pattern along the path."""
    return np.stack([np.sin(1e6 * nodes), np.cos(7e5 * nodes)], 1)


# --- nodes -------------------------------------------------------------------------------------


def test_stages_grow_by_quarters_of_a_doubling() -> None:
    assert [stage.cells for stage in STAGES[:10]] == [32, 40, 48, 56, 64, 80, 96, 112, 128, 160]
    for stage in STAGES:
        assert stage.count == stage.cells - 1 == len(nodes_until(stage))


def test_no_node_is_evaluated_twice() -> None:
    nodes = np.concatenate([stage.nodes for stage in STAGES])
    assert len(np.unique(nodes)) == len(nodes)
    assert ((nodes > 0) & (nodes < 1)).all()
    for stage in STAGES:
        multiples = stage.nodes * 2 ** np.ceil(np.log2(stage.cells))
        assert (multiples == np.round(multiples)).all()


def test_full_grids_are_even() -> None:
    for stage in STAGES:
        assert stage.full == (np.ptp(np.diff(nodes_until(stage))) < 1e-12)
    assert [stage.cells for stage in STAGES if stage.full] == [32, 64, 128, 256, 512]


@pytest.mark.parametrize("most", [0, 30, 31, 38, 39, 62, 63, 64, 511, 8192])
def test_no_more_nodes_than_asked_for(most: int) -> None:
    stages = grid_stages(most)
    assert sum(len(stage.nodes) for stage in stages) <= most
    assert bool(stages) == (most >= START - 1)
    assert (stages[-1].count * 1.35 > most) if stages else True


# --- weights and contrasts ---------------------------------------------------------------------


def test_weights_are_shares_of_the_path() -> None:
    """Sums per class, and the two outermost gradients, give what a sum over all nodes with their
    own weights gives.
    """
    for stage, sums in grow(wild):
        nodes = nodes_until(stage)
        np.testing.assert_allclose(weights(stage) @ sums, shares(nodes) @ wild(nodes), atol=1e-13)


def test_the_worked_example() -> None:
    """Of the 8 even classes, in cells: as the docstring of `_pattern` has it."""
    pattern = _pattern(EVEN)
    even = [0, 2, 4, 6, 8, 10, 12, 14]
    assert pattern.weights[even].tolist() == [2] * 8
    assert pattern.weights[[FIRST_EDGE, LAST_EDGE]].tolist() == [1, 1]
    of_0, of_2 = pattern.contrasts[0], pattern.contrasts[1]
    assert {i: of_0[i] for i in np.flatnonzero(of_0)} == {
        14: -1,
        0: 2,
        2: -1,
        FIRST_EDGE: 1,
        LAST_EDGE: 1,
    }
    assert {i: of_2[i] for i in np.flatnonzero(of_2)} == {0: -1, 2: 2, 4: -1, FIRST_EDGE: -1}


def test_contrasts_leave_one_class_out() -> None:
    """Each is the integral less what the other classes give alone. Near the ends, where more than
    one node changes its weight, the outermost gradient stands for its neighbours: exact where they
    are equal.
    """

    def flat_at_the_ends(nodes: Floats) -> Floats:
        return wild(np.clip(nodes, 0.4, 0.6))

    for stage, sums in grow(flat_at_the_ends):
        if stage.cells < 2 * JUDGED:
            continue
        nodes = nodes_until(stage)
        whole, classes = shares(nodes) @ flat_at_the_ends(nodes), classes_of(stage, nodes)
        assert len(contrasts(stage)) == len(np.unique(classes))
        for found, left_out in zip(contrasts(stage) @ sums, np.unique(classes), strict=True):
            others = nodes[classes != left_out]
            np.testing.assert_allclose(
                found, whole - shares(others) @ flat_at_the_ends(others), atol=1e-13
            )


def test_contrasts_near_the_ends_are_as_large_as_explicit_ones() -> None:
    """With jumps in the outermost cells they differ, by no more than the jump is worth."""
    for place in (1.5 / 128, 2.5 / 128, 6.5 / 128):
        for stage, sums in grow(lambda nodes, place=place: 1.0 * (nodes[:, None] < place)):
            if stage.cells < 2 * JUDGED:
                continue
            nodes = nodes_until(stage)
            values, classes = 1.0 * (nodes < place), classes_of(stage, nodes)
            explicit = np.array(
                [
                    shares(nodes) @ values - shares(nodes[classes != c]) @ values[classes != c]
                    for c in np.unique(classes)
                ]
            )
            assert np.abs((contrasts(stage) @ sums)[:, 0] - explicit).max() <= 2 / stage.cells


def test_constants_and_ramps_have_no_contrast() -> None:
    """A constant is integrated exactly, and a ramp between the ends as well: nothing to see."""
    for stage, sums in grow(lambda nodes: np.stack([np.ones_like(nodes), nodes], 1)):
        np.testing.assert_allclose(weights(stage) @ sums, [1, 0.5], atol=1e-3)
        assert np.abs(contrasts(stage) @ sums)[:, 0].max() < 1e-14
        assert np.abs(contrasts(stage) @ sums)[:, 1].max() < 3 / stage.cells**2


def test_folded_classes_are_the_even_ones_of_the_next_grid() -> None:
    """The sums of a full grid, added up anew for a grid twice as fine."""
    for before, after in pairwise(STAGES):
        if not after.fold:
            continue
        sums = next(
            sums.copy()
            for stage, sums in grow(wild)
            if stage is before or stage.count == before.count
        )
        nodes = nodes_until(before)
        expected = np.zeros((COLUMNS, 2))
        np.add.at(expected, classes_of(after, nodes), wild(nodes))
        expected[[FIRST_EDGE, LAST_EDGE]] = wild(nodes[[0, -1]])
        np.testing.assert_allclose(folded(sums), expected, atol=1e-12)
        assert not folded(sums)[[c for c in range(CLASSES) if c not in EVEN]].any()


def test_folding_keeps_every_row_and_the_total() -> None:
    sums = np.random.default_rng(0).standard_normal((3, COLUMNS, 5))
    found = folded(sums)
    np.testing.assert_allclose(found[:, :CLASSES].sum(1), sums[:, :CLASSES].sum(1), atol=1e-13)
    np.testing.assert_array_equal(found[1], folded(sums[1]))
    np.testing.assert_array_equal(found[:, CLASSES:], sums[:, CLASSES:])


# --- the estimate ------------------------------------------------------------------------------


def ratios(features: int, jumps: tuple[int, int], rows: int, ends: float = 0.0) -> Floats:
    """Estimate over true L1 error at every judged stage, for gradients that jump at random places;
    `jumps` from and to.
    """
    draw, found = np.random.default_rng([features, *jumps]), []
    for _ in range(rows):
        count = draw.integers(jumps[0], jumps[1] + 1)
        places, sizes = draw.uniform(ends, 1 - ends, count), draw.standard_normal((count, features))
        level = draw.standard_normal(features)
        exact = level + (1 - places) @ sizes
        for stage, sums in grow(
            lambda nodes, p=places, s=sizes, b=level: b + (nodes[:, None] > p) @ s
        ):
            if stage.cells >= JUDGED:
                read = stage.readings.numpy() @ sums
                estimate = estimated(stage, read[None], (read[0] - exact).sum()[None])
                found.append(estimate[0] / np.abs(read[0] - exact).sum())
    return np.array(found)


@pytest.mark.parametrize("features", [2, 8, 96])
@pytest.mark.parametrize("jumps", [(2, 4), (5, 20), (1, 200)])
def test_the_estimate_is_a_few_times_the_error(features: int, jumps: tuple[int, int]) -> None:
    """Piecewise constant gradients: below half in less than one of a thousand judgements, or five
    where jumps are so few that all may lie beside one another or beyond the outermost node.
    """
    found = ratios(features, jumps, 200)
    assert 1.5 < np.median(found) < 6
    assert (found < 0.5).mean() < (5e-3 if jumps == (2, 4) else 1e-3)
    assert (found < 1).mean() < 1e-2


@pytest.mark.parametrize("features", [2, 8, 96])
def test_a_lone_jump_between_the_nodes_is_always_seen(features: int) -> None:
    found = ratios(features, (1, 1), 150, ends=1 / START)
    assert 1.5 < np.median(found) < 6
    assert found.min() > 1


def test_a_lone_jump_beyond_the_outermost_node_is_seen_in_f_alone() -> None:
    """No two gradients differ; with features that cancel in f nothing is left to see. A tested
    estimate, not a proof.
    """
    place = 1 - 0.5 / 600
    for sizes, seen in ((np.array([3.0, 1.0]), True), (np.array([3.0, -3.0]), False)):
        exact = 1 + (1 - place) * sizes
        for stage, sums in grow(lambda nodes, s=sizes: 1 + (nodes[:, None] > place) * s):
            read = stage.readings.numpy() @ sums
            estimate = estimated(stage, read[None], (read[0] - exact).sum()[None])[0]
            assert (estimate > np.abs(read[0] - exact).sum()) == seen


def test_the_gap_alone_can_raise_the_estimate() -> None:
    stage, sums = next(grow(lambda nodes: np.ones((len(nodes), 2))))
    read = (stage.readings.numpy() @ sums)[None]
    assert estimated(stage, read, np.array([0.0]))[0] < 1e-12
    assert estimated(stage, read, np.array([-0.3]))[0] == pytest.approx(0.375)


def test_few_independent_differences_call_for_caution() -> None:
    """One jump shows in two classes, a hundred in all: the multiple of the root mean square falls
    from 3.5 to 2.6.
    """
    draw = np.random.default_rng(0)
    multiples = []
    for jumps in (1, 100):
        places, sizes = draw.uniform(0.1, 0.9, jumps), draw.standard_normal((jumps, 50))
        stage, sums = list(grow(lambda nodes, p=places, s=sizes: (nodes[:, None] > p) @ s))[8]
        read = (stage.readings.numpy() @ sums)[None]
        spread = stage.scale * np.sqrt((read[0, 1:] ** 2).sum(0)).sum()
        multiples.append(estimated(stage, read, np.array([0.0]))[0] / spread)
    assert 2.5 < multiples[1] < 2.8 < 3 < multiples[0] < 3.51


def test_rows_are_judged_one_by_one() -> None:
    draw = np.random.default_rng(0)
    stage = STAGES[6]
    read = draw.standard_normal((4, 1 + len(contrasts(stage)), 7))
    read[2, 1:] = 0
    together = estimated(stage, read, np.zeros(4))
    assert together[2] == 0
    for row in range(4):
        alone = estimated(stage, read[row : row + 1], np.zeros(1))[0]
        assert together[row] == pytest.approx(alone, rel=1e-12)
