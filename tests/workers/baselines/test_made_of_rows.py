"""Baselines that are made of the row: the farthest valid input, and the row under a blur."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from integrand.schemas.errors import SpecError
from tests.workers.baselines.conftest import FEATURES, IMAGE


def test_max_distance_is_the_farther_end_of_each_element(made: Any, images: np.ndarray) -> None:
    (found,) = made(IMAGE | {"range": [[-1, 0], [1, 1]]}, baseline={"kind": "max_distance"})
    for image, baseline in zip(images, found.numpy(), strict=True):
        for channel, (low, high) in enumerate([(-1, 1), (0, 1)]):
            for x, far in zip(image[channel].flat, baseline[channel].flat, strict=True):
                assert far == max((low, high), key=lambda end, x=x: abs(x - end))


def test_max_distance_from_the_middle_is_the_lower_end(made: Any) -> None:
    one = {"name": "f", "columns": ["a"], "std": 1e9, "range": [-1e9, 1e9]}
    (found,) = made(one | {"divide": 1e300}, baseline={"kind": "max_distance"})
    assert found.unique().tolist() == [-1e9]


def _blurred(line: np.ndarray, sigma: float) -> np.ndarray:
    """One line of pixels, mirrored over and over, under a kernel of four standard deviations."""
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.convolve(np.pad(line, radius, "symmetric"), kernel / kernel.sum(), "valid")


@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.0, 20.0])
def test_blur_is_a_convolution_over_both_axes(made: Any, images: np.ndarray, sigma: float) -> None:
    (found,) = made(IMAGE, baseline={"kind": "blur", "sigma": sigma})
    columns = np.apply_along_axis(_blurred, -2, images, sigma)
    expected = np.apply_along_axis(_blurred, -1, columns, sigma)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_blur_is_scipys_gaussian_filter(made: Any, images: np.ndarray) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    (found,) = made(IMAGE, baseline={"kind": "blur", "sigma": 2})
    for image, baseline in zip(images, found.numpy(), strict=True):
        for channel, blurred in zip(image, baseline, strict=True):
            np.testing.assert_allclose(blurred, ndimage.gaussian_filter(channel, 2), rtol=1e-12)


def test_blur_does_not_depend_on_the_other_rows(made: Any) -> None:
    blur = {"kind": "blur", "sigma": 2}
    (whole,) = made(IMAGE, baseline=blur, compute={"precision": "float32"})
    for rows in ([3], [5, 3, 11], range(2, 9)):
        (some,) = made(IMAGE, rows=rows, baseline=blur, compute={"precision": "float32"})
        assert torch.equal(some, whole[list(rows)])


def test_blur_needs_two_axes_in_space(made: Any) -> None:
    with pytest.raises(SpecError, match=r"two axes in space(.|\n)*shape \[2\]"):
        made(FEATURES, baseline={"kind": "blur", "sigma": 1})


@pytest.mark.parametrize("sigma", [0, -1])
@pytest.mark.parametrize("kind", ["blur", "gaussian"])
def test_sigma_is_above_zero(made: Any, kind: str, sigma: float) -> None:
    with pytest.raises(SpecError, match=r"sigma(.|\n)*greater than 0"):
        made(IMAGE, baseline={"kind": kind, "sigma": sigma})
