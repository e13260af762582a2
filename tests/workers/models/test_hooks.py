"""Modules are as they were, whatever somebody did to them meanwhile."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from integrand.workers.models.hooks import as_it_was, has_hooks


def test_what_was_set_registered_and_rebound_is_put_back() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.BatchNorm1d(3)).eval()
    net[0].rule = "the user's"
    kept = net[0].register_forward_hook(lambda module, given, out: out)
    weights = copy.deepcopy(net.state_dict())
    with pytest.raises(KeyError), as_it_was(net):
        disturb(net)
    assert net[0].rule == "the user's"
    assert list(net[0]._forward_hooks) == [kept.id]
    assert not has_hooks(net[1])
    assert not hasattr(net[1], "activations")
    found = net.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def disturb(net: nn.Sequential) -> None:
    net[0].weight.data = torch.zeros(3, 2)
    net[0].register_forward_pre_hook(lambda module, given: None)
    net[1].register_full_backward_hook(lambda module, given, out: None)
    del net[0].rule
    net[1].activations = {}
    net[2].register_buffer("further", torch.zeros(1))
    raise KeyError


def test_scripted_modules_are_left_alone() -> None:
    scripted = torch.jit.script(nn.Linear(2, 1))
    with as_it_was(nn.Sequential(scripted)):
        pass
    assert scripted(torch.zeros(1, 2)).shape == (1, 1)
