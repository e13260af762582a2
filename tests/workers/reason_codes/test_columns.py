"""Reasons as a user reads them."""

import numpy as np
import pytest

from integrand.schemas.records import ReasonCodes, ReasonLine
from integrand.schemas.specs.reasons import Reasons
from integrand.schemas.tables import ReasonsStatus, RowStatus
from integrand.workers.reason_codes.candidates import candidates
from integrand.workers.reason_codes.columns import Asked, reason_columns

FEATURES = ("age", "income", "rent", "own", "month")
CODES = ReasonCodes(
    sha256="",
    lines=(
        ReasonLine(feature="own", code="H", text="Housing"),
        ReasonLine(feature="income", code="I", text="Income"),
        ReasonLine(feature="rent", code="H", text="Housing"),
        ReasonLine(feature="month", code="M", text="Month"),
    ),
)


def asked(attributions, error=1e-6, status=RowStatus.ok, moved=True) -> Asked:
    values = np.array([attributions], float)
    statuses = np.empty(1, object)
    statuses[:] = status
    return Asked(
        attributions=values,
        moved=np.full(values.shape, moved),
        error=np.array([error]),
        status=statuses,
    )


def texts(feature, rows):
    return [f"{feature} of {row}" for row in rows]


def columns(spec: Reasons, rows: Asked, codes=CODES):
    reasons, statuses = reason_columns(candidates(FEATURES, spec, codes), rows, texts)
    return reasons[0], statuses[0]


def test_contributions_of_one_code_are_added_first():
    spec = Reasons(k=2, toward="lower", exclude=("age",))
    reasons, status = columns(spec, asked([-9.0, -0.4, -0.3, -0.2, 0.1]))
    assert status == ReasonsStatus.certified
    assert [(r["rank"], r["code"], r["feature"], r["text"]) for r in reasons] == [
        (1, "H", "rent", "Housing"),
        (2, "I", "income", "Income"),
    ]
    assert [r["value"] for r in reasons] == ["rent of 0", "income of 0"]
    assert [r["contribution"] for r in reasons] == pytest.approx([-0.5, -0.4])
    assert [r["share"] for r in reasons] == pytest.approx([0.5 / 9.9, 0.4 / 9.9])


def test_without_codes_features_are_their_own():
    spec = Reasons(k=1, toward="higher")
    reasons, _ = columns(spec, asked([0.1, 0.3, -1, 0, 0]), None)
    assert [(r["code"], r["text"], r["share"]) for r in reasons] == [
        ("income", None, pytest.approx(0.75))
    ]


def test_a_prohibited_reason_has_no_text():
    spec = Reasons(k=2, toward="higher", prohibited=("age",))
    reasons, status = columns(spec, asked([0.5, 0.3, 0.1, 0, 0]))
    assert status == ReasonsStatus.prohibited
    assert [(r["feature"], r["code"], r["text"]) for r in reasons] == [
        ("age", None, None),
        ("income", "I", "Income"),
    ]
    _, status = columns(spec, asked([-0.5, 0.3, 0.1, 0, 0]))
    assert status == ReasonsStatus.certified


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        (asked([-1.0, -0.5, -0.2, -0.1, -0.3]), "none_toward"),
        (asked([0.0, 0.0, 0.0, 0.0, 0.0], 0.0, moved=False), "none_toward"),
        (asked([-1.0, -0.5, -0.2, 0.0, -0.3], 0.01), "order_uncertain"),
        (asked([1.0, 0.3, 0.2, 0.1, 0.0]), "certified"),
        (asked([1.0, 0.3, 0.0, 0.2999, 0.0], 0.01), "order_uncertain"),
        (asked([1.0, 0.3, 0.2, 0.1, 0.0], status=RowStatus.not_converged), "not_converged"),
        (asked([1.0, 0.3, 0.2, 0.1, 0.0], np.nan, RowStatus.unchecked), "order_uncertain"),
    ],
)
def test_statuses(rows, status):
    found = columns(Reasons(k=2, toward="higher"), rows, None)[1]
    assert found == status


def test_rows_do_not_depend_on_their_neighbours():
    """Bit for bit: rows alone, and among others."""
    random = np.random.default_rng(0)
    values = random.normal(size=(50, 5)).astype(np.float32).astype(float)
    spec = Reasons(k=3, toward="higher")
    every = Asked(
        attributions=values,
        moved=np.ones(values.shape, bool),
        error=np.full(50, 0.01),
        status=np.array([RowStatus.ok] * 50, object),
    )
    among = reason_columns(
        candidates(FEATURES, spec, CODES), every, lambda f, rows: [f] * len(rows)
    )
    for row in range(50):
        alone = columns(spec, asked(values[row], 0.01))
        for reason in [*alone[0], *among[0][row]]:
            reason["value"] = None
        assert (among[0][row], among[1][row]) == alone
