"""Rows explained by Captum's classes are what Captum says of them, whoever is beside them, and
leave the model as it was.
"""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Iterator
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from captum.attr._utils.lrp_rules import GammaRule
from torch import Tensor, nn

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Adaptive
from integrand.schemas.specs.methods import CaptumMethod
from integrand.schemas.tables import RowStatus
from integrand.workers import Attribution, attribute
from integrand.workers.methods.captum.classes import TRAITS
from integrand.workers.methods.captum.running import seeded
from integrand.workers.methods.table import method_of
from integrand.workers.models.row_tensors import RowTensors

pytestmark = pytest.mark.filterwarnings("ignore:Setting:UserWarning")


class Net(nn.Module):
    """[rows, 1, 6, 6] to 3 logits; LRP has rules for all of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2)
        self.middle, self.again, self.last = nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.pool(self.relu(self.conv(x)))
        return self.last(self.again(self.middle(seen.flatten(1))))


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / math.sqrt(max(1, p[0].numel())))
    return module.eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


NET = drawn(Net())
X, START = normal(7, 1, 6, 6, seed=1), normal(1, 1, 6, 6, seed=2)
BACKGROUND = normal(4, 1, 6, 6, seed=3)
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2, 0])
MASK = torch.arange(36).reshape(1, 1, 6, 6) // 6
ARGUMENTS: dict[str, dict[str, Any]] = {
    "FeatureAblation": {"feature_mask": MASK.tolist()},
    "GradientShap": {"n_samples": 6, "stdevs": 0.1},
    "GuidedGradCam": {"layer": "conv"},
    "Occlusion": {"sliding_window_shapes": (1, 3, 3), "strides": (1, 2, 2)},
    "ShapleyValueSampling": {"n_samples": 2},
    "ShapleyValues": {"feature_mask": (MASK // 2).tolist()},
}
CLASSES = list(TRAITS)
MASKED = {name for name, arguments in ARGUMENTS.items() if "feature_mask" in arguments}
DRAWN = [name for name in CLASSES if TRAITS[name].random]


def part(name: str, **named: Any) -> CaptumMethod:
    return CaptumMethod(name=name, arguments=tuples(ARGUMENTS.get(name, {})), **named)


def tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: tuples(v) for k, v in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def explained(name: str, x: Tensor = X, targets: Any = TARGETS, **named: Any) -> Attribution:
    if TRAITS[name].distribution:
        named = {"baselines": BACKGROUND, "draws": len(BACKGROUND)} | named
    else:
        named = {"baselines": START} | named
    model = named.pop("model", NET)
    asked = named.pop("method", part(name))
    return attribute(model, x, target=targets, method=asked, batch_rows=16, **named)


def directly(name: str, x: Tensor, target: Any) -> Tensor:
    """What Captum says, called by hand."""
    arguments = dict(ARGUMENTS.get(name, {}))
    made = {"layer": NET.conv} if arguments.pop("layer", None) else {}
    if "feature_mask" in arguments:
        arguments["feature_mask"] = torch.tensor(arguments["feature_mask"])
    instance = getattr(captum.attr, name)(NET, **made)
    if TRAITS[name].distribution:
        arguments["baselines"] = BACKGROUND
    elif "baselines" in instance.attribute.__wrapped__.__code__.co_varnames:
        arguments["baselines"] = START
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return instance.attribute(x.clone(), target=target, **arguments).detach()


def row_by_row(name: str) -> Tensor:
    """Each row alone, from the seed that is its own where the class draws."""
    found = []
    for x, target in zip(X[:, None], TARGETS, strict=True):
        with seeded(0, RowTensors((x,)), 0):
            found.append(directly(name, x, target[None]))
    return torch.cat(found)


@pytest.mark.parametrize("name", CLASSES)
def test_rows_get_what_captum_says(name: str) -> None:
    found = explained(name)
    torch.testing.assert_close(found.attributions, row_by_row(name), rtol=1e-5, atol=1e-6)
    assert set(found.status) == {RowStatus.unchecked}
    assert found.error_estimate.isnan().all()
    out = NET(X).gather(1, TARGETS[:, None])[:, 0].double().detach()
    torch.testing.assert_close(found.f_input, out, rtol=1e-5, atol=1e-6)
    total = found.attributions.double().flatten(1).sum(1)
    change = found.f_input - found.f_baseline
    torch.testing.assert_close(found.gap, total - change, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted({n for n in CLASSES if TRAITS[n].complete} - MASKED))
def test_what_promises_completeness_is_complete(name: str) -> None:
    """But for rounding; of few steps by their rule, and of few samples on average alone. (Without
    max pooling, of which Captum's DeepLift leaves a part.)
    """
    layers = (nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3))
    tolerance = {"GradientShap": 3.0, "IntegratedGradients": 0.05}.get(name, 1e-4)
    found = explained(name, model=drawn(nn.Sequential(*layers)))
    assert (found.gap.abs() < tolerance).all()
    assert found.gap.abs().max() < 0.5 * (found.f_input - found.f_baseline).abs().max()


COUNTS = {
    "DeepLift": 2,
    "DeepLiftShap": 8,
    "FeatureAblation": 7,
    "GradientShap": 6,
    "GuidedGradCam": 2,
    "IntegratedGradients": 50,
    "KernelShap": 25,
    "LRP": 2,
    "Lime": 25,
    "Occlusion": 10,
    "ShapleyValueSampling": 73,
}


@pytest.mark.parametrize("name", CLASSES)
def test_evaluations_are_the_rows_that_the_model_was_run_on(name: str) -> None:
    found = set(explained(name).evaluations.tolist())
    if name == "ShapleyValues":
        assert found == {1 + 3 * math.factorial(3)}
    else:
        assert found == {COUNTS.get(name, 1)}


# --- whoever is beside a row ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_a_rows_bits_are_its_own(name: str) -> None:
    """Alone, in another order, and beside more rows."""
    together = explained(name).attributions
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    turned = explained(name, X[order], TARGETS[order]).attributions
    assert torch.equal(turned, together[order])
    many = X.repeat(6, 1, 1, 1)
    repeated = explained(name, many, TARGETS.repeat(6)).attributions
    assert torch.equal(repeated, together.repeat(6, 1, 1, 1))
    for row in (0, 4):
        alone = explained(name, X[row : row + 1], TARGETS[row : row + 1]).attributions
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("name", DRAWN)
def test_a_seed_of_its_own_makes_other_draws(name: str) -> None:
    first, again = explained(name).attributions, explained(name).attributions
    other = explained(name, method=part(name, seed=1)).attributions
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", DRAWN)
def test_generators_go_on_as_if_nothing_had_been(name: str) -> None:
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    undisturbed = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    explained(name)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == undisturbed


def test_a_row_that_is_not_finite_stays_alone() -> None:
    x = X.clone()
    x[2, 0, 0, 0] = math.nan
    found = explained("DeepLift", x)
    assert found.status[2] == RowStatus.bad_input
    rest = [0, 1, 3, 4, 5, 6]
    assert torch.equal(found.attributions[rest], explained("DeepLift").attributions[rest])


def test_rows_at_their_baseline() -> None:
    """Where a class compares with the baseline there is nothing to say; a gradient there is one."""
    x = torch.cat([START, X[:2]])
    compared = explained("DeepLift", x, TARGETS[:3])
    assert compared.status[0] == RowStatus.ok
    assert not compared.attributions[0].any()
    gradient = explained("Saliency", x, TARGETS[:3])
    assert gradient.status[0] == RowStatus.unchecked
    assert gradient.attributions[0].any()


# --- several of everything -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DeepLift", "Lime", "DeepLiftShap", "Occlusion", "LRP"])
def test_several_targets_of_each_row(name: str) -> None:
    several = explained(name, X[:3], [0, 2]).attributions
    for place, target in enumerate((0, 2)):
        assert torch.equal(several[:, place], explained(name, X[:3], target).attributions)


def two(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    return a.sin().sum(1) * scale + (b.tanh().flatten(1).sum(1)).square()


@pytest.mark.parametrize(
    "name", ["FeatureAblation", "GradientShap", "IntegratedGradients", "KernelShap", "Saliency"]
)
def test_several_inputs_and_arguments(name: str) -> None:
    a, b, scale = normal(4, 3), normal(4, 2, 2, seed=1), normal(4, seed=2)
    found = attribute(
        two, (a, b), forward_args=scale, method=CaptumMethod(name=name), batch_rows=16
    )
    assert [v.shape for v in found.attributions] == [a.shape, b.shape]
    alone = attribute(
        two,
        (a[1:2], b[1:2]),
        forward_args=scale[1:2],
        method=CaptumMethod(name=name),
        batch_rows=16,
    )
    assert torch.equal(alone.attributions[1][0], found.attributions[1][1])


def test_a_mask_for_each_of_several_inputs() -> None:
    a, b, scale = normal(4, 3), normal(4, 2, 2, seed=1), normal(4, seed=2)
    masks = (((0, 0, 1),), (((2, 2), (2, 2)),))
    asked = CaptumMethod(name="FeatureAblation", arguments={"feature_mask": masks})
    found = attribute(two, (a, b), forward_args=scale, method=asked, batch_rows=16)
    assert set(found.evaluations.tolist()) == {4}
    first, second = found.attributions
    assert torch.equal(first[:, 0], first[:, 1])
    assert torch.equal(second, second[:, :1, :1].expand_as(second))


@pytest.mark.parametrize("name", ["DeepLift", "Lime"])
def test_baselines_one_by_one_are_averaged(name: str) -> None:
    """Of a class that takes one at a time; its draws are then other ones for each."""
    found = explained(name, X[:3], TARGETS[:3], baselines=BACKGROUND, draws=4)
    own = [explained(name, X[:3], TARGETS[:3], baselines=b[None]) for b in BACKGROUND]
    mean = torch.stack([o.attributions.double() for o in own]).mean(0)
    if name == "DeepLift":
        torch.testing.assert_close(found.attributions.double(), mean, rtol=1e-5, atol=1e-6)
    else:
        assert not torch.allclose(found.attributions.double(), mean)
    assert torch.equal(found.evaluations, sum(o.evaluations for o in own))


def test_each_row_may_have_a_distribution_of_its_own() -> None:
    own = normal(12, 1, 6, 6, seed=8)
    found = explained("DeepLiftShap", X[:3], TARGETS[:3], baselines=own, draws=4)
    alone = explained("DeepLiftShap", X[1:2], TARGETS[1:2], baselines=own[4:8], draws=4)
    assert torch.equal(found.attributions[1], alone.attributions[0])


# --- the model is as it was ----------------------------------------------------------------------


def inside(model: nn.Module) -> Iterator[tuple[str, object]]:
    """All that a module holds, but for what its tensors are."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            shown = sorted(map(str, value)) if isinstance(value, dict) else repr(value)
            yield f"{name}.{key}", shown


@pytest.mark.parametrize("name", CLASSES)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = copy.deepcopy(NET)
    before, weights = dict(inside(model)), copy.deepcopy(model.state_dict())
    explained(name, model=model)
    assert dict(inside(model)) == before
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_rules_of_the_user_hold_for_every_batch() -> None:
    """Captum takes them away after the first call, and would go on by its default rules."""
    model = copy.deepcopy(NET)
    model.middle.rule = GammaRule()
    rule = model.middle.rule
    many = X.repeat(6, 1, 1, 1)
    found = explained("LRP", many, TARGETS.repeat(6), model=model).attributions
    assert torch.equal(found, found[:7].repeat(6, 1, 1, 1))
    assert not torch.equal(found[:7], explained("LRP").attributions)
    assert model.middle.rule is rule


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.first(self.relu(x))))


def exported() -> nn.Module:
    net = drawn(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    rows = {0: torch.export.Dim("rows")}
    return torch.export.export(net, (normal(3, 4),), dynamic_shapes=(rows,)).module()


REFUSALS = {
    "a layer used twice": (drawn(Twice()), "DeepLift", {}, "more than once"),
    "a layer without a rule": (
        drawn(nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2))),
        "LRP",
        {},
        "no rule defined",
    ),
    "a scripted model": (
        torch.jit.script(drawn(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))),
        "GuidedBackprop",
        {},
        r"a torch\.nn\.Module",
    ),
    "an exported model": (exported(), "DeepLift", {}, r"a torch\.nn\.Module"),
    "a function": (lambda x: x[:, :2] ** 2, "DeepLift", {}, r"a torch\.nn\.Module"),
    "a layer that is not there": (drawn(Twice()), "GuidedGradCam", {"layer": "lats"}, "`last`"),
    "a layer without places": (
        drawn(Twice()),
        "GuidedGradCam",
        {"layer": "first"},
        "captum:Guided",
    ),
    "a window of other dimensions": (
        drawn(Twice()),
        "Occlusion",
        {"sliding_window_shapes": (1, 3, 3)},
        "dimension",
    ),
    "one baseline": (drawn(Twice()), "DeepLiftShap", {}, "give a baseline with `draws`"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_model_that_a_class_cannot_take_is_refused(name: str) -> None:
    """By a trial, after which the model is as it was."""
    model, class_, arguments, words = REFUSALS[name]
    before = dict(inside(model)) if isinstance(model, nn.Module) else {}
    asked = CaptumMethod(name=class_, arguments=arguments)
    with pytest.raises(SpecError, match=words):
        attribute(model, normal(3, 4), target=0, method=asked)
    if isinstance(model, nn.Module):
        assert dict(inside(model)) == before


def test_shapley_values_of_few_features_are_complete() -> None:
    found = attribute(
        lambda x: x.prod(1) + x[:, 0].exp(),
        normal(4, 3),
        method=CaptumMethod(name="ShapleyValues"),
        batch_rows=16,
    )
    assert (found.gap.abs() < 1e-6).all()
    assert set(found.evaluations.tolist()) == {1 + 3 * 6}


def test_a_trial_of_many_passes_is_ended() -> None:
    """Ablation of a thousand features is tried on 64 of them."""
    passes: list[int] = []

    def forward(x: Tensor) -> Tensor:
        passes.append(len(x))
        return x.square().sum(1)

    method = method_of(Adaptive(), CaptumMethod(name="FeatureAblation"))
    method.check(forward, RowTensors((normal(3, 1000),), (torch.zeros(1, 1000),)))
    assert len(passes) == 64


def test_a_model_that_writes_into_its_input() -> None:
    def forward(x: Tensor) -> Tensor:
        return x.mul_(2).sin().sum(1)

    found = attribute(forward, normal(3, 4), method=CaptumMethod(name="Saliency"))
    torch.testing.assert_close(found.attributions, (2 * (2 * normal(3, 4)).cos()).abs())
