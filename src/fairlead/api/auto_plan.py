"""What is worth trying on a model, in which order, and why: before anything is tried."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fairlead.core.bundle import Bundle, derive_bundle
from fairlead.core.errors import ConfigError, FairleadError, ModelError
from fairlead.core.ports import Feeds
from fairlead.measure.roofline import BOUNDS, Roofline

__all__ = [
    "Device",
    "ModelProfile",
    "PlannedTrial",
    "Target",
    "describe_bounds",
    "on_cuda",
    "plan_trials",
    "profile_model",
]

Target = Literal["latency", "throughput", "size", "memory"]
Device = Literal["cpu", "cuda", "edge"]
Family = Literal["transformer", "convolutional", "recurrent", "dense", "trees", "other", "not-onnx"]

_TREES = frozenset({"TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"})
_NORMS = frozenset({"LayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNorm"})
_CUDA = "CUDAExecutionProvider"
_WORTH_IT = 1.05
"""What cannot gain 5 % however well it goes is not tried."""
_MIN_MATRIX = 256
_CHANGES_PER_LOSS = 2.0
_QUANTIZE_EVALUATIONS = 4
_COMPRESS_EVALUATIONS = 3


@dataclass(frozen=True)
class ModelProfile:
    """What is known of a model before anything is tried.

    Attributes:
        family: What kind of model it is, as far as that decides what may help.
        matrix_share: Share of its time in matrix products, convolutions and recurrent layers.
        roofline: Its operators under the roof of this machine; None where it cannot be profiled.
        is_integer: Whether its matrices are stored in 8 or fewer bits already.
        note: Why there is no roofline; empty when there is one.
    """

    family: Family
    matrix_share: float = 0.0
    roofline: Roofline | None = None
    is_integer: bool = False
    note: str = ""

    @property
    def int8_limit(self) -> float:
        """How many times as fast 8 bits could make it at most, by Amdahl's law."""
        if self.roofline is None:
            return float("inf")
        peaks = self.roofline.peaks
        faster = max(peaks.int8_gops / peaks.gflops, 4.0)
        return 1.0 / (1.0 - self.matrix_share + self.matrix_share / faster)


@dataclass(frozen=True)
class PlannedTrial:
    """One thing that is tried, or not, and why.

    Attributes:
        id: Its name in reports and in the journal.
        verb: The skill's verb.
        why: One sentence.
        is_tried: Whether it is tried at all.
        settings: Settings for the verb.
        starts_from: Trial whose result it goes on with; the original when None.
        by_agreement: Whether what keeps most answers is looked for, with labels left aside.
    """

    id: str
    verb: Literal["tune", "quantize", "compress"]
    why: str
    is_tried: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    starts_from: str | None = None
    by_agreement: bool = False


def profile_model(bundle: Bundle, batch: Feeds) -> ModelProfile:
    """Find out what kind of model it is and where its time goes.

    Args:
        bundle: The model.
        batch: Typical rows, one array per input.
    """
    if bundle.manifest.kind != "onnx":
        return ModelProfile("not-onnx", note=f"a {bundle.manifest.kind} model has no ONNX graph")
    from fairlead.backends.onnx_graph import has_integer_matrices
    from fairlead.backends.operator_profile import (
        CONVOLUTIONS,
        MATRIX_PRODUCTS,
        RECURRENT,
        profile_operators,
    )

    try:
        roofline = profile_operators(bundle.model_path, batch, bundle.runtime)
        is_integer = has_integer_matrices(bundle.model_path, min_weights=_MIN_MATRIX)
    except ModelError as exc:
        return ModelProfile("other", note=exc.message)
    kinds = {one.operator for one in roofline.operators}
    family: Family = "other"
    if kinds & _TREES:
        family = "trees"
    elif kinds & RECURRENT:
        family = "recurrent"
    elif kinds & CONVOLUTIONS:
        family = "convolutional"
    elif "Attention" in kinds or ("Softmax" in kinds and kinds & _NORMS):
        family = "transformer"
    elif kinds & MATRIX_PRODUCTS:
        family = "dense"
    share = roofline.share_of(
        MATRIX_PRODUCTS | CONVOLUTIONS | RECURRENT | {"Attention", "QAttention"}
    )
    return ModelProfile(family, share, roofline, is_integer)


def plan_trials(
    profile: ModelProfile,
    *,
    target: Target,
    device: Device,
    limits: Mapping[str, Any],
    has_labels: bool = True,
) -> tuple[PlannedTrial, ...]:
    """Decide what is tried, the cheapest and safest first.

    Args:
        profile: What is known of the model.
        target: What must get better.
        device: Where it will run.
        limits: Settings that quantize and compress share: budget, metric, rows, seed.
        has_labels: Whether the rows have labels.
    """
    goal = "speed" if target in ("latency", "throughput") else "size"
    shared = {**limits, "goal": goal}
    quantize = _quantize(profile, goal, device, shared)
    tune = _tune(profile, target, device)
    if profile.family == "trees":
        return (tune, quantize, *_smaller_trees(shared, has_labels))
    compress = _compress(profile, shared)
    return (tune, quantize, compress, _both(quantize, compress))


def _tune(profile: ModelProfile, target: Target, device: Device) -> PlannedTrial:
    goal = "throughput" if target == "throughput" else "latency"
    settings: dict[str, Any] = {"goal": goal}
    if device == "edge":
        settings |= {"max_threads": 1, "max_batch_size": 1, "runtime": "onnxruntime"}
    where = f"; most of the time is {profile.roofline.bound}" if profile.roofline else ""
    why = f"settings cost no quality, so they come first{where}"
    return PlannedTrial("tuned", "tune", why, settings=settings)


def _quantize(
    profile: ModelProfile, goal: str, device: Device, shared: Mapping[str, Any]
) -> PlannedTrial:
    limit, share = profile.int8_limit, profile.matrix_share
    settings: dict[str, Any] = {**shared, "max_evaluations": _QUANTIZE_EVALUATIONS}
    if device != "cpu":
        settings["runtime"] = "onnxruntime"
    if device == "cuda":
        settings["method"] = "fp16"
    reasons = {
        "not-onnx": "it has no graph whose weights could be rewritten",
        "trees": "trees hold thresholds, no matrices that fewer bits could make faster",
    }
    why = reasons.get(profile.family, "")
    if not why and profile.is_integer:
        why = "its matrices are stored in 8 or fewer bits already"
    if not why and goal == "speed" and limit < _WORTH_IT:
        why = (
            f"matrix products take {share:.0%} of the time, so 8 bits could make it "
            f"{limit:.2f} times as fast at best"
        )
    if why:
        return PlannedTrial("quantized", "quantize", why, is_tried=False)
    if goal == "size":
        why = "fewer bits per weight are the cheapest way to fewer bytes"
    else:
        why = (
            f"matrix products take {share:.0%} of the time: in 8 bits it could be up to "
            f"{limit:.1f} times as fast"
        )
    return PlannedTrial("quantized", "quantize", why, settings=settings)


def _compress(profile: ModelProfile, shared: Mapping[str, Any]) -> PlannedTrial:
    tried = {
        "convolutional": "a smaller network taught by this one may answer alike",
        "dense": "matrices of low rank, or a smaller network taught by this one, may answer alike",
        "other": "a small network taught by it may answer alike",
    }
    left = {
        "transformer": "cutting a transformer without training it again costs more quality than "
        "8 bits; bring the module with `fairlead optimize compress --model-factory`",
        "recurrent": "recurrent layers have no matrices of low rank to cut; bring the module with "
        "`fairlead optimize compress --model-factory`",
        "not-onnx": "it has no graph that could be cut",
    }
    family = profile.family
    if family in left:
        return PlannedTrial("compressed", "compress", left[family], is_tried=False)
    settings = {**shared, "max_evaluations": _COMPRESS_EVALUATIONS}
    return PlannedTrial("compressed", "compress", tried[family], settings=settings)


def _smaller_trees(shared: Mapping[str, Any], has_labels: bool) -> tuple[PlannedTrial, ...]:
    """Return what may make an ensemble of trees faster, each a version of its own.

    Which of them keeps the budget is decided on few rows and may turn out otherwise on others, so
    the harmless one takes part in the last measurement beside the daring ones.
    """
    limits = {**shared, "max_evaluations": _COMPRESS_EVALUATIONS}
    exact = {**limits, "method": "tree-selection", "max_drop": 0.0, "allow_unproven": True}
    is_exact = shared.get("max_drop") == 0
    never = "it changes some answers a little, and the budget is 0"
    fewer = "trees that stand for all of them may answer as well; time falls with their number"
    alike = "a right answer is lost only where the answer changes: as many trees as that takes"
    none = "the rows have no labels, so that agreement decides for `fewest trees` as well"
    taught = "a small network taught by the trees may answer alike"
    return (
        PlannedTrial(
            "leaner trees",
            "compress",
            "entries of leaves that add nothing can go, and no answer changes",
            settings=exact,
        ),
        PlannedTrial(
            "fewer trees",
            "compress",
            never if is_exact else alike if has_labels else none,
            is_tried=has_labels and not is_exact,
            settings={
                **limits,
                "method": "tree-selection",
                "metric": "auto",
                # Not every changed answer was right before: the last measurement counts them.
                "max_drop": min(_CHANGES_PER_LOSS * shared.get("max_drop", 0.01), 1.0),
            },
            by_agreement=True,
        ),
        PlannedTrial(
            "fewest trees",
            "compress",
            never if is_exact else fewer,
            is_tried=not is_exact,
            settings={**limits, "method": "tree-selection"},
        ),
        PlannedTrial(
            "distilled",
            "compress",
            never if is_exact else taught,
            is_tried=not is_exact,
            settings={**limits, "method": "distillation"},
        ),
    )


def _both(quantize: PlannedTrial, compress: PlannedTrial) -> PlannedTrial:
    name = "compressed, then quantized"
    if not compress.is_tried:
        return PlannedTrial(name, "quantize", "nothing is compressed", is_tried=False)
    settings = quantize.settings
    if not quantize.is_tried:
        # A graph that has no matrices may get some.
        settings = {**compress.settings, "max_evaluations": _QUANTIZE_EVALUATIONS}
    why = "what is left after compression may be stored in fewer bits as well"
    return PlannedTrial(name, "quantize", why, settings=settings, starts_from=compress.id)


def describe_bounds(profile: ModelProfile) -> str:
    """Return the shares of the time by what limits it, in words; empty when not known."""
    if profile.roofline is None:
        return ""
    shares = profile.roofline.shares
    return ", ".join(f"{shares[name]:.0%} {name}" for name in BOUNDS if shares[name] >= 0.005)


def on_cuda(start: Bundle, out: Path) -> Bundle:
    """Return the model with settings for a GPU, beside the result of the search.

    Args:
        start: The model.
        out: Where the result will lie.

    Raises:
        ConfigError: ONNX Runtime has no provider for it here.
    """
    from fairlead.backends.onnxruntime import available_providers

    present = available_providers()
    if _CUDA not in present or start.manifest.kind != "onnx":
        raise ConfigError(
            f"device `cuda` needs {_CUDA} and an ONNX model; found {', '.join(present)} and a "
            f"model of kind `{start.manifest.kind}`",
            hint="install onnxruntime-gpu in place of onnxruntime, or use --device cpu",
        )
    place = out.with_name(out.name + ".search") / "on-cuda"
    try:
        return Bundle.open(place)
    except FairleadError:
        shutil.rmtree(place, ignore_errors=True)
    runtime = start.runtime.model_copy(update={"execution_provider": _CUDA})
    return derive_bundle(
        start, place, made_by="optimize-auto", change="runs on CUDA", runtime=runtime
    )
