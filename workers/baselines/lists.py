"""Rows of a dataset in the place of other rows, whose lists of ids may be of another length."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.inputs import EmbeddedInput
from integrand.workers.baselines.base import Place, PlaceRows
from integrand.workers.data.inputs.ids import PADDING


def check_fill(place: Place) -> None:
    """SpecError for lists of any length that nothing fills up."""
    if place.shape.varying and isinstance(place.input, EmbeddedInput) and place.input.pad is None:
        raise SpecError(
            f"baseline of input `{place.shape.name}`",
            expected="the input's `pad`, which fills up a baseline that is shorter than a row",
            seen="none",
            next_step=f"give inputs.{place.shape.name}.pad, or choose another baseline",
        )


def in_place(rows: PlaceRows, found: np.ndarray) -> Tensor:
    """Rows `[draws, *shape]` as they stand for others: numbers as they are, a list of ids cut to
    the length of theirs or filled up with the input's `pad`.
    """
    if not isinstance(rows.input, EmbeddedInput):
        return rows.placed(found)
    ids = found.reshape(len(found), -1)
    width = rows.shape.shape[0]
    fitted = np.full((len(ids), width), PADDING, np.int64)
    held = min(width, ids.shape[1])
    fitted[:, :held] = ids[:, :held]
    return rows.placed(np.where(fitted == PADDING, rows.input.pad or 0, fitted))
