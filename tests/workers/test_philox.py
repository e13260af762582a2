"""Random numbers are functions of seed, row, stream, draw and place: Philox4x32-10."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from integrand.workers import philox
from integrand.workers.philox import integers, keys_of, normals, uniforms

KEYS = keys_of([f"row {i}" for i in range(50)])
ONES = 0xFFFFFFFF


def _words(*values: int) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([value], dtype=torch.int64) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(counter, key, expected):
    found = philox.philox(_words(*counter), _words(*key))
    assert tuple(int(word) for word in found) == expected


@pytest.mark.parametrize("draw", [uniforms, normals])
def test_a_number_depends_on_nothing_that_is_drawn_beside_it(draw):
    whole = draw(KEYS, seed=7, stream=3, draws=range(5), count=9)
    assert whole.shape == (50, 5, 9)
    assert whole.dtype == torch.float64
    some = draw(KEYS[[4, 11]], seed=7, stream=3, draws=range(2, 4), count=6)
    assert torch.equal(whole[[4, 11], 2:4, :6], some)
    assert torch.equal(
        whole[[4, 11]], draw(KEYS[[4, 11]], seed=7, stream=3, draws=range(5), count=9)
    )


@pytest.mark.parametrize("draw", [uniforms, normals])
def test_parts_that_are_enciphered_together_change_no_bit(draw, monkeypatch):
    whole = draw(KEYS, seed=1, stream=0, draws=range(3), count=101)
    for at_once in (1, 16, 151, 1000):
        monkeypatch.setattr(philox, "_AT_ONCE", at_once)
        assert torch.equal(whole, draw(KEYS, seed=1, stream=0, draws=range(3), count=101))


def test_rows_seeds_streams_draws_and_places_are_told_apart():
    found = [
        uniforms(KEYS, seed=seed, stream=stream, draws=range(4), count=8).flatten()
        for seed in (0, 1, 2**32)
        for stream in (0, 1)
    ]
    numbers = torch.cat(found)
    assert len(numbers.unique()) == len(numbers)


def test_numbers_are_uniform_and_uncorrelated():
    found = uniforms(KEYS, seed=0, stream=0, draws=range(10), count=400).numpy()
    counts, _ = np.histogram(found, bins=100, range=(0, 1))
    expected = found.size / 100
    assert ((counts - expected) ** 2 / expected).sum() < 150  # chi² of 99, beyond 0.999
    assert found.min() >= 0
    assert found.max() < 1
    rows = np.corrcoef(found.reshape(50, -1)) - np.eye(50)
    assert np.abs(rows).max() < 5 / np.sqrt(4000)
    places = np.corrcoef(found[:, :, :-1].ravel(), found[:, :, 1:].ravel())[0, 1]
    assert abs(places) < 5 / np.sqrt(found.size)


def test_normals_are_normal():
    found = normals(KEYS, seed=0, stream=0, draws=range(10), count=400).flatten().sort().values
    expected = torch.distributions.Normal(0.0, 1.0).cdf(found)
    steps = torch.arange(len(found), dtype=torch.float64) / len(found)
    assert (expected - steps).abs().max() < 1.95 / len(found) ** 0.5  # Kolmogorov, beyond 0.999


def test_quantiles_are_those_of_as_241():
    """Python's own `inv_cdf` is the same algorithm, on the library's logarithm."""
    p = torch.cat([torch.logspace(-15, -0.31, 3000, dtype=torch.float64), torch.tensor([0.5])])
    p = torch.cat([p, 1 - p, torch.tensor([2.0**-53], dtype=torch.float64)])
    expected = [NormalDist().inv_cdf(one) for one in p.tolist()]
    found = philox._normal_quantile(p)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)


def test_logarithms_are_as_good_as_the_library_s():
    x = torch.cat([torch.logspace(-16, 3, 5000, dtype=torch.float64), torch.tensor([2.0**-53])])
    error = (philox._log(x) - x.log()).abs()
    assert bool((error <= 4e-16 * x.log().abs().clamp(min=0.05)).all())


def test_integers_are_below_and_reach_each_number():
    found = integers(KEYS, seed=0, stream=0, draws=range(8), count=60, below=5)
    assert found.dtype == torch.int64
    assert found.unique().tolist() == [0, 1, 2, 3, 4]
    below = torch.arange(1, 61)
    places = integers(KEYS, seed=0, stream=0, draws=range(8), count=60, below=below)
    assert bool((places < below).all())
    assert bool((places >= 0).all())


def test_keys_are_digests_of_the_ids():
    assert keys_of(["a", "b", "a"]).tolist()[0] == keys_of(["a"]).tolist()[0]
    assert KEYS.shape == (50, 2)
    assert KEYS.dtype == torch.int64
    assert len({tuple(key) for key in KEYS.tolist()}) == 50
    assert keys_of([]).shape == (0, 2)
    assert uniforms(keys_of([]), seed=0, stream=0, draws=range(2), count=3).shape == (0, 2, 3)
