"""Errors say where, expected, seen and next; they keep their type and words on the way from a
worker.
"""

from __future__ import annotations

import pickle

import pytest

from integrand.schemas.errors import (
    DataError,
    IntegrandError,
    IntegrityError,
    SpecError,
    TransientError,
)

KINDS = [(SpecError, 2), (DataError, 2), (TransientError, 4), (IntegrityError, 6)]


@pytest.mark.parametrize(("kind", "code"), KINDS)
def test_each_kind_has_its_exit_code(kind: type[IntegrandError], code: int):
    assert kind.exit_code == code
    assert issubclass(kind, IntegrandError)


def test_the_message_has_four_parts():
    error = SpecError("compute.workers", expected="at least 1", seen="0", next_step="ask for more")
    assert str(error) == "compute.workers\n  expected: at least 1\n  seen: 0\n  next: ask for more"
    assert str(DataError("source")) == "source"


@pytest.mark.parametrize(("kind", "_"), KINDS)
def test_an_error_survives_pickling(kind: type[IntegrandError], _: int):
    error = kind("here", expected="a", seen="b", next_step="c")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.where, copy.expected, copy.seen, copy.next_step) == ("here", "a", "b", "c")
    assert str(copy) == str(error)


def test_what_the_user_can_mend_is_a_value_error():
    assert issubclass(SpecError, ValueError)
    assert issubclass(DataError, ValueError)
    assert not issubclass(TransientError, ValueError)
