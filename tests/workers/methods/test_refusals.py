"""What `attribute` refuses: where, what was expected, what was seen, what to do next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from integrand.schemas.errors import IntegrandError
from integrand.workers.methods.attribution import attribute
from tests.toys import mlp, rows

F64 = torch.float64


X = rows(4)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "half": ({"inputs": X.half()}, r"float32 or float64(.|\n)*float16"),
    "integers": ({"inputs": X.long()}, r"int64(.|\n)*embedding"),
    "a list": ({"inputs": [[1.0, 2.0]]}, r"tensor(.|\n)*list"),
    "nothing": ({"inputs": ()}, "empty tuple"),
    "no rows": ({"inputs": X[:0]}, r"at least one row(.|\n)*\[0, 3\]"),
    "no features": ({"inputs": X[:, :0]}, "at least one element"),
    "no dimension": ({"inputs": torch.tensor(1.0)}, "at least one row"),
    "rows that differ": ({"inputs": (X, X[:2])}, r"inputs\[1\](.|\n)*4 rows(.|\n)*2 rows"),
    "train mode": (
        {"forward": nn.Sequential(nn.Linear(3, 2), nn.Dropout())},
        r"eval mode(.|\n)*model\.eval",
    ),
    "a submodule in train mode": (
        {
            "forward": (
                nn.Sequential(nn.Linear(3, 2).eval(), nn.Dropout()).eval().append(nn.BatchNorm1d(2))
            )
        },
        "train mode in 2",
    ),
    "negative target": ({"target": -1}, r"target of row 0(.|\n)*0 to 1(.|\n)*-1"),
    "target too large": ({"target": 2}, r"0 to 1(.|\n)*2"),
    "a row's target too large": ({"target": torch.tensor([0, 1, 2, 0])}, "target of row 2"),
    "targets of another length": ({"target": torch.tensor([0, 1])}, r"4 entries(.|\n)*\[2\]"),
    "float targets": ({"target": torch.ones(4)}, r"float32(.|\n)*long"),
    "no targets": ({"target": []}, r"a list of targets of one kind(.|\n)*\[\]"),
    "targets of two kinds": ({"target": [0, (0, 1)]}, "a list of targets of one kind"),
    "a target and none": ({"target": [0, None]}, "a list of targets of one kind"),
    "one of several targets too large": (
        {"target": [0, 2]},
        r"target of row 0(.|\n)*0 to 1(.|\n)*2",
    ),
    "target too deep": ({"target": (0, 1)}, r"1 indices(.|\n)*2"),
    "no target": ({"target": None}, r"no target and output shape \[rows, 2\]"),
    "a target for a scalar": ({"forward": lambda v: v.sum(1)}, "scalar output takes no target"),
    "baseline without rows": (
        {"baselines": torch.zeros(3)},
        r"\[1, 3\](.|\n)*\[3\](.|\n)*baseline\[None\]",
    ),
    "baselines of other rows": ({"baselines": torch.zeros(2, 3)}, r"\[4, 3\](.|\n)*\[2, 3\]"),
    "too many baselines": ({"baselines": (X, X)}, "one per input"),
    "a named baseline": ({"baselines": "zero"}, r"baselines(.|\n)*str"),
    "forward_args of other rows": (
        {"forward_args": torch.ones(3)},
        r"forward_args\[0\](.|\n)*4 rows(.|\n)*\[3\]",
    ),
    "no gradient path": ({"forward": lambda v: mlp()(v.detach())}, "no gradient path"),
    "no gradient at all": ({"forward": lambda v: v.detach()}, "no gradient path"),
    "integer output": ({"forward": lambda v: mlp()(v).argmax(1, keepdim=True)}, "floating point"),
    "one output for all rows": ({"forward": lambda v: v.sum(0)}, r"one entry per row(.|\n)*\[3\]"),
    "one number": ({"forward": lambda v: v.sum()}, "one entry per row"),
    "a tuple of outputs": ({"forward": lambda v: (mlp()(v),)}, r"one tensor(.|\n)*tuple"),
    "a batch of no rows": ({"batch_rows": 0}, r"batch_rows(.|\n)*0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    changed, message = REFUSED[name]
    arguments: dict[str, Any] = {"forward": mlp(), "inputs": X, "target": 0} | changed
    with pytest.raises(IntegrandError, match=message) as refused:
        attribute(arguments.pop("forward"), arguments.pop("inputs"), **arguments)
    assert isinstance(refused.value, ValueError)
    assert all(
        [refused.value.where, refused.value.expected, refused.value.seen, refused.value.next_step]
    )
