import pytest
import torch

from integrand.workers.models.row_tensors import RowTensors

X = torch.arange(6.0).reshape(3, 2)
ONE, EACH = torch.zeros(1, 2), -X
TARGETS = torch.tensor([[0], [1], [2]])


@pytest.mark.parametrize(("baseline", "taken"), [(ONE, ONE), (EACH, EACH[[2, 0]])])
def test_rows_are_taken_with_what_goes_with_them(
    baseline: torch.Tensor, taken: torch.Tensor
) -> None:
    found = RowTensors((X,), (baseline,), (X + 1,), TARGETS).take(torch.tensor([2, 0]))
    expected = [X[[2, 0]], taken, X[[2, 0]] + 1, TARGETS[[2, 0]]]
    seen = [*found.inputs, *found.baselines, *found.forward_args, found.target]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_a_shared_row_stays_one_until_each_needs_its_own() -> None:
    shared = RowTensors((X,), (ONE,), target=TARGETS[:1]).repeat(5)
    assert (shared.rows, len(shared.baselines[0]), len(shared.target)) == (5, 1, 1)
    each = shared.expanded()
    assert (len(each.baselines[0]), len(each.target)) == (5, 5)


def test_scalar_outputs_have_no_target() -> None:
    rows = RowTensors((X,), (ONE,)).take(slice(2)).expanded().to("cpu")
    assert rows.target is None
    assert (rows.rows, rows.elements, rows.device.type) == (2, 2, "cpu")
