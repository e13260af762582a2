"""Baselines that are drawn: functions of seed, row id and draw alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from integrand.schemas.errors import SpecError
from integrand.workers.philox import keys_of, normals, uniforms
from tests.workers.baselines.conftest import FEATURES, IMAGE

RANGED = IMAGE | {"range": [[-1, 0], [1, 3]]}
UNIFORM = {"kind": "uniform", "draws": 4, "seed": 5}
GAUSSIAN = {"kind": "gaussian", "sigma": 0.5, "draws": 4, "seed": 5}
STREAM = 1 << 31


def test_uniform_is_low_and_a_share_of_the_width(made: Any) -> None:
    (found,) = made(RANGED, baseline=UNIFORM)
    low = torch.tensor([-1.0, 0], dtype=torch.float64)[:, None, None]
    width = torch.tensor([2.0, 3], dtype=torch.float64)[:, None, None]
    assert found.shape == (48, 2, 6, 5)
    for row in range(12):
        key = keys_of([f"row {row}"])
        for draw in range(4):
            u = uniforms(key, seed=5, stream=STREAM, draws=range(draw, draw + 1), count=60)
            expected = low + u.reshape(2, 6, 5) * width
            assert torch.allclose(found[4 * row + draw], expected, rtol=1e-15)


def test_gaussian_is_the_row_with_noise_and_clipped(made: Any, images: np.ndarray) -> None:
    (found,) = made(RANGED, baseline=GAUSSIAN)
    (free,) = made(IMAGE, baseline=GAUSSIAN | {"clip": False})
    low = np.array([-1, 0])[:, None, None]
    high = np.array([1, 3])[:, None, None]
    for row in range(12):
        noise = normals(keys_of([f"row {row}"]), seed=5, stream=STREAM, draws=range(4), count=60)
        moved = images[row] + 0.5 * noise.reshape(4, 2, 6, 5).numpy()
        own = slice(4 * row, 4 * row + 4)
        np.testing.assert_allclose(free[own], moved, rtol=1e-14, atol=1e-15)
        np.testing.assert_allclose(found[own], np.clip(moved, low, high), rtol=1e-14, atol=1e-15)


def test_sigma_in_raw_units_is_divided_like_the_data(made: Any) -> None:
    scaled = IMAGE | {"divide": 4, "mean": 7, "std": [2, -0.5]}
    free = GAUSSIAN | {"clip": False}
    (raw,) = made(scaled, baseline=free | {"sigma": 3, "units": "raw"})
    for channel, sigma in enumerate((3 / 4 / 2, 3 / 4 / 0.5)):
        (plain,) = made(scaled, baseline=free | {"sigma": sigma})
        assert torch.allclose(raw[:, channel], plain[:, channel], rtol=1e-13, atol=1e-14)


def test_shared_draws_are_one_set_for_all_rows(made: Any) -> None:
    (shared,) = made(RANGED, baseline=UNIFORM | {"shared": True})
    (fewer,) = made(RANGED, rows=[4, 2], baseline=UNIFORM | {"shared": True})
    assert shared.shape == (4, 2, 6, 5)
    assert torch.equal(shared, fewer)
    assert len(shared.unique()) == shared.numel()


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("baseline", [UNIFORM, GAUSSIAN])
def test_draws_depend_on_no_other_row(made: Any, baseline: dict[str, Any], precision: str) -> None:
    compute = {"precision": precision}
    (whole,) = made(RANGED, baseline=baseline, compute=compute)
    for rows in ([7], [7, 2, 5], range(11, -1, -1)):
        (some,) = made(RANGED, rows=rows, baseline=baseline, compute=compute)
        expected = whole.unflatten(0, (12, 4))[list(rows)].flatten(0, 1)
        assert torch.equal(some, expected)


def test_more_draws_go_on_where_fewer_end(made: Any) -> None:
    (few,) = made(RANGED, baseline=UNIFORM | {"draws": 3})
    (many,) = made(RANGED, baseline=UNIFORM | {"draws": 7})
    assert torch.equal(few.unflatten(0, (12, 3)), many.unflatten(0, (12, 7))[:, :3])


def test_seeds_and_inputs_are_told_apart(made: Any) -> None:
    features = FEATURES | {"range": [0, 1]}
    alone, beside = features | {"columns": ["a"]}, features | {"name": "g", "columns": ["b"]}
    first, second = made(alone, beside, baseline=UNIFORM)
    (other,) = made(alone, baseline=UNIFORM | {"seed": 6})
    assert not np.intersect1d(first, second).size
    assert not np.intersect1d(first, other).size


def test_an_input_with_one_baseline_has_it_in_all_draws(made: Any) -> None:
    far = {"columns": ["a"], "baseline": {"kind": "max_distance"}, "range": [0, 1]}
    plain = FEATURES | far
    zero = FEATURES | {"name": "z", "columns": ["b"], "baseline": {"kind": "zero"}}
    drawn, one, shared = made(RANGED, plain, zero, baseline=UNIFORM)
    assert drawn.shape[0] == 48
    assert shared.shape == (1, 1)
    assert torch.equal(one, one[::4].repeat_interleave(4, 0))


def test_two_numbers_of_draws_are_refused(made: Any) -> None:
    other = FEATURES | {"range": [0, 1], "baseline": {"kind": "uniform", "draws": 3}}
    with pytest.raises(SpecError, match=r"one number of draws(.|\n)*4 of image, 3 of f"):
        made(RANGED, other, baseline=UNIFORM)


@pytest.mark.parametrize("draws", [0, -1])
def test_draws_are_one_or_more(made: Any, draws: int) -> None:
    with pytest.raises(SpecError, match=r"draws(.|\n)*greater than or equal to 1"):
        made(RANGED, baseline=UNIFORM | {"draws": draws})


def test_one_draw_is_a_baseline_of_each_row(made: Any) -> None:
    (one,) = made(RANGED, baseline=UNIFORM | {"draws": 1})
    (four,) = made(RANGED, baseline=UNIFORM)
    assert torch.equal(one, four[::4])
