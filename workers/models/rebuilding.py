"""A second build of a model: a factory must make the same one every time, since each worker makes
one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, equal

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.models import ModelPart
from integrand.workers.models.kinds.base import Built, Loaded
from integrand.workers.models.outputs import Forward


def build_again(model: ModelPart, loaded: Loaded) -> Built | None:
    """The model built once more, before the first one has run; None of a program.

    Raises SpecError for one that holds something else.
    """
    if loaded.build is None or loaded.state is None:
        return None
    second = loaded.build()
    differ = _differing(loaded.state.bits, second.state.bits)
    if differ:
        further = f" and {len(differ) - 1} more" if len(differ) > 1 else ""
        raise _another(model, f"`{differ[0]}`{further} with other values the second time")
    return second


def check_outputs(
    model: ModelPart, loaded: Loaded, second: Built, outputs: Callable[[Forward], object]
) -> None:
    """Raises SpecError for a second model that says something else, by numbers that are kept in no
    tensor.

    outputs  what a model says of some rows
    """
    assert loaded.build is not None
    if _same(outputs(loaded.forward), outputs(second.forward)):
        return
    # new ones: a model that counts its calls is refused later, as such
    if not _same(outputs(loaded.build().forward), outputs(loaded.build().forward)):
        raise _another(model, "other outputs of the second one for the same rows")


def _differing(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    changed = [name for name in first if second.get(name) != first[name]]
    return changed or [name for name in second if name not in first]


def _same(one: object, other: object) -> bool:
    """Whether two outputs are equal; what is no tensor is refused later."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return True
    return equal(one.nan_to_num(), other.nan_to_num())


def _another(model: ModelPart, seen: str) -> SpecError:
    """For a factory that builds another model whenever it is called: every worker would explain its
    own.
    """
    return SpecError(
        model.where,
        expected="the same model from every call: each worker makes one",
        seen=seen,
        next_step=(
            "load all weights (model.weights, or in the factory); where random ones are meant, "
            "call torch.manual_seed in the factory"
        ),
    )
