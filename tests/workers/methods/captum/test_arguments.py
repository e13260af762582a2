"""Classes and arguments of Captum: what a spec may name, and what it is told where it may not."""

from __future__ import annotations

from importlib import util
from typing import Any

import pytest

from integrand.schemas.errors import SpecError
from integrand.schemas.specs.accuracy import Adaptive
from integrand.schemas.specs.methods import CaptumMethod
from integrand.workers.methods.captum.arguments import bound
from integrand.workers.methods.captum.classes import TRAITS, find_class
from integrand.workers.methods.captum.method import CaptumAttribution
from integrand.workers.methods.table import method_of


def asked(name: str, **arguments: Any) -> CaptumAttribution:
    return CaptumAttribution(Adaptive(), CaptumMethod(name=name, arguments=arguments))


@pytest.mark.parametrize("name", TRAITS)
def test_every_class_that_is_known_is_there(name: str) -> None:
    assert find_class(name).made.__name__ == name


REFUSED = {
    "no class": ("DeepLyft", {}, "did you mean `captum:DeepLift`"),
    "nothing like one": ("Quux", {}, "name one of them"),
    "no attribution": ("InterpretableInput", {}, "a class of Captum that explains rows"),
    "of a layer": ("LayerConductance", {}, "of a layer"),
    "of a neuron": ("NeuronDeepLift", {}, "of a layer"),
    "among rows": ("FeaturePermutation", {}, "which rows are beside"),
    "of another class": ("NoiseTunnel", {}, "smoothgrad"),
    "of functions": ("LimeBase", {}, "take Lime"),
    "no argument": ("DeepLift", {"epss": 1e-9}, "did you mean `eps`"),
    "of another class's": ("DeepLift", {"n_samples": 3}, "the class does not have"),
    "the job's own": ("FeatureAblation", {"baselines": 0}, "see `baseline`, `target`"),
    "the job's target": ("Lime", {"target": 1}, "the job gives itself"),
    "the job's model": ("DeepLift", {"model": "net"}, "the job gives itself"),
    "the delta": ("DeepLift", {"return_convergence_delta": True}, "the job gives itself"),
    "a function": ("DeepLift", {"custom_attribution_func": "f"}, "a spec cannot hold"),
    "an interpretable model": ("Lime", {"interpretable_model": "lasso"}, "a spec cannot hold"),
    "progress": ("Lime", {"show_progress": True}, "no matter of rows"),
    "other shapes": ("KernelShap", {"return_input_shape": False}, "no matter of rows"),
    "text for a number": ("Lime", {"n_samples": "many"}, "a whole number from 1"),
    "no samples": ("Lime", {"n_samples": 0}, "a whole number from 1"),
    "a share of a sample": ("GradientShap", {"n_samples": 2.5}, "a whole number from 1"),
    "a number for a switch": ("DeepLift", {"multiply_by_inputs": 1}, "true or false"),
    "a switch for a number": ("ShapleyValueSampling", {"n_samples": True}, "a whole number"),
    "noise below none": ("GradientShap", {"stdevs": -0.1}, "a number from 0"),
    "a window of text": ("Occlusion", {"sliding_window_shapes": "all"}, "a list"),
    "no window": ("Occlusion", {}, "add `arguments: {sliding_window_shapes: …}`"),
    "no layer": ("GuidedGradCam", {}, "add `arguments: {layer: …}`"),
    "a layer's number": ("GuidedGradCam", {"layer": 3}, "dotted name of a module"),
    "a mask of text": ("FeatureAblation", {"feature_mask": ("a", "b")}, "a list of numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_with_what_can(name: str) -> None:
    class_, arguments, words = REFUSED[name]
    with pytest.raises(SpecError, match=words) as refused:
        asked(class_, **arguments)
    assert f"captum:{class_}" in str(refused.value)


TAKEN = {
    "Occlusion": {"sliding_window_shapes": (1, 3, 3), "strides": 2},
    "GradientShap": {"n_samples": 7, "stdevs": (0.1, 0.2), "multiply_by_inputs": False},
    "GuidedGradCam": {"layer": "features.3", "interpolate_mode": "nearest"},
    "FeatureAblation": {"feature_mask": ((0, 0, 1),), "perturbations_per_eval": 4},
    "IntegratedGradients": {"n_steps": 9, "method": "riemann_left", "internal_batch_size": None},
    "DeepLift": {"eps": 0, "multiply_by_inputs": True},
    "Saliency": {"abs": False},
}


@pytest.mark.parametrize("name", TAKEN)
def test_arguments_go_to_the_function_that_takes_them(name: str) -> None:
    found = bound(find_class(name), TAKEN[name])
    assert dict(found.constructor) | dict(found.attribute) == TAKEN[name]
    assert set(found.constructor) <= {"multiply_by_inputs", "eps", "layer"}
    assert found.modules == ({"layer"} if name == "GuidedGradCam" else set())
    assert found.tensors == ({"feature_mask"} if name == "FeatureAblation" else set())
    assert TAKEN[name].items() <= found.values.items()


def test_several_windows_and_strides_of_each_axis() -> None:
    windows = {"sliding_window_shapes": ((2,), (1, 3, 3)), "strides": ((1,), (1, 2, 2))}
    assert bound(find_class("Occlusion"), windows).attribute == windows


@pytest.mark.parametrize(("package", "name"), [("captum", "DeepLift"), ("sklearn", "Lime")])
def test_the_extra_is_named_where_it_is_missing(
    package: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = util.find_spec
    hidden = lambda wanted: None if wanted == package else there(wanted)  # noqa: E731
    monkeypatch.setattr("integrand.workers.methods.captum.classes.find_spec", hidden)
    with pytest.raises(SpecError, match=r"pip install 'integrand\[captum\]'"):
        asked(name)


PROMISES = {
    "DeepLift": ({}, True, True),
    "DeepLift, not multiplied": ({"multiply_by_inputs": False}, False, False),
    "GradientShap": ({}, True, True),
    "KernelShap": ({}, True, True),
    "ShapleyValues": ({}, True, True),
    "ShapleyValues, of sets": ({"feature_mask": ((0, 0, 1),)}, False, True),
    "FeatureAblation": ({}, False, True),
    "LRP": ({}, False, True),
    "Lime": ({}, False, True),
    "Saliency": ({}, False, False),
    "Saliency, a slope": ({"abs": False}, False, False),
    "GuidedBackprop": ({}, False, False),
    "InputXGradient": ({}, False, True),
}


@pytest.mark.parametrize("name", PROMISES)
def test_what_a_class_promises(name: str) -> None:
    arguments, complete, signed = PROMISES[name]
    method = asked(name.split(",")[0], **arguments)
    assert (method.complete, method.signed) == (complete, signed)
    assert method.tolerance is None
    assert method.needs_plain_model


def test_the_table_finds_it() -> None:
    assert isinstance(method_of(Adaptive(), CaptumMethod(name="LRP")), CaptumAttribution)
