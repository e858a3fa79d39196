"""One bundle behind a service: its runner, warm, with a queue in front of it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np

from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.errors import FairleadError, SignatureError
from fairlead.core.ports import Array, Runner
from fairlead.core.signature import Signature, TensorSpec, conform
from fairlead.measure.quality import run_batches
from fairlead.serve.inference.batching import BatchQueue, QueueLimits
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.core_division import open_divided
from fairlead.serve.inference.examples import example_feeds
from fairlead.serve.inference.intake import Intake
from fairlead.serve.inference.methods import METHODS
from fairlead.serve.inference.padding import Padding

__all__ = ["Arm", "check_same_inputs", "free_signature", "open_arm"]

_log = logging.getLogger(__name__)
_WARM_ROWS = 3
_JOIN_TOLERANCE = 0.1
_SHORT, _LONG = 5, 8


@dataclass(frozen=True, eq=False)
class Arm:
    """One of the bundles that a service chooses between.

    Attributes:
        name: `baseline` or `candidate`.
        bundle: What it serves.
        signature: What it takes and gives; the first dimension of batches is free.
        runner: The loaded model.
        queue: What waits for it.
        intake: Checks what is asked of it.
        model: Name of the model that it answers for.
    """

    name: str
    bundle: Bundle
    signature: Signature
    runner: Runner
    queue: BatchQueue
    intake: Intake
    model: str = ""

    @property
    def version(self) -> str:
        """Version of its bundle."""
        return self.bundle.version

    def close(self) -> None:
        """Let running batches end and free the model."""
        self.queue.close()
        self.runner.close()


def open_arm(
    name: str,
    bundle: Bundle,
    config: ServingConfig,
    *,
    cores: int,
    trust: bool = False,
    model: str = "",
) -> Arm:
    """Load a bundle's model, run it once or twice, and put a queue in front of it.

    Args:
        name: `baseline` or `candidate`.
        bundle: What to serve.
        config: Settings of serving.
        cores: CPU cores that this arm may use.
        trust: Whether code that came with the model may run.
        model: Name of the model; the bundle's own where it is "".

    Raises:
        UntrustedError: Loading would run code, and `trust` is off.
        ModelError: The model cannot be loaded.
    """
    signature = free_signature(bundle.signature)
    runtime, runner = open_divided(
        bundle, signature, cores, trust=trust, is_one_of_many=config.workers > 1
    )
    threads = runtime.intra_op_threads or 1
    max_rows = config.max_batch_size or runtime.max_batch_size
    is_fixed = signature != bundle.signature

    def run(feeds: dict[str, Array]) -> dict[str, Array]:
        rows = len(next(iter(feeds.values()))) if can_split else 1
        if can_split and (is_fixed or rows > max_rows):
            return run_batches(runner, feeds, max_rows)
        return runner.run(feeds)

    can_split = _has_rows(signature)
    is_joinable = _warm_up(bundle, runner, signature) and config.batching != "request-at-a-time"
    padding = _prove_padding(bundle, runner, signature, config) if is_joinable else None
    queue = BatchQueue(
        run,
        take=METHODS[config.batching],
        is_joinable=is_joinable,
        limits=_limits(config, runtime, max_rows, threads, cores, runner),
        name=name,
        padding=padding,
    )
    intake = Intake(signature, max_rows=config.max_request_rows)
    return Arm(name, bundle, signature, runner, queue, intake, model or bundle.name)


def _limits(
    config: ServingConfig,
    runtime: RuntimeSettings,
    max_rows: int,
    threads: int,
    cores: int,
    runner: Runner,
) -> QueueLimits:
    # How long somebody's code will take cannot be told from how long it took.
    is_foreign = getattr(runner, "runs_foreign_code", False)
    return QueueLimits(
        max_batch_rows=max_rows,
        max_wait_s=runtime.max_batch_wait_ms / 1e3,
        max_pending=config.max_pending_requests,
        max_delay_s=config.max_queue_delay_ms / 1e3,
        latency_budget_s=(config.latency_budget_ms or math.inf) / 1e3,
        inline_s=0.0 if is_foreign else config.inline_run_ms / 1e3,
        parallel_runs=max(1, cores // threads),
        may_divide=not is_foreign,
    )


def free_signature(signature: Signature) -> Signature:
    """Return the signature with a free batch dimension where the model has a fixed one.

    A model that was exported for batches of 8 takes any number of rows: the rest is padded.
    """
    sizes = {spec.shape[0] if spec.shape else 0 for spec in signature.inputs}
    if len(sizes) != 1 or sizes <= {-1, 0}:
        return signature
    return Signature(
        inputs=tuple(_freed(spec) for spec in signature.inputs),
        outputs=tuple(_freed(spec) for spec in signature.outputs),
    )


def _freed(spec: TensorSpec) -> TensorSpec:
    return spec.model_copy(update={"shape": (-1, *spec.shape[1:])}) if spec.shape else spec


def _has_rows(signature: Signature) -> bool:
    return all(spec.has_free_batch for spec in signature.inputs)


def check_same_inputs(baseline: Bundle, candidate: Bundle) -> None:
    """Refuse two arms that do not take the same inputs: no request would suit both.

    Raises:
        SignatureError: Names, dtypes or shapes differ.
    """
    first, second = (free_signature(item.signature).inputs for item in (baseline, candidate))
    if first == second:
        return
    one, two = (", ".join(str(spec) for spec in specs) for specs in (first, second))
    raise SignatureError(
        f"the candidate takes {two}, but the baseline takes {one}",
        hint="pack the candidate from a model with the same inputs",
    )


def _warm_up(bundle: Bundle, runner: Runner, signature: Signature) -> bool:
    """Run example rows one by one and together; say whether rows keep to themselves."""
    try:
        feeds = conform(example_feeds(bundle, signature, _WARM_ROWS), signature)
        if not _has_rows(signature):
            runner.run(feeds)
            return False
        together = run_batches(runner, feeds, _WARM_ROWS)
        single = run_batches(runner, feeds, 1)
    except FairleadError as exc:
        _log.warning("warm-up of %s failed, so its requests run alone: %s", bundle.path, exc)
        return False
    is_joinable = all(_agree(together[name], array) for name, array in single.items())
    if not is_joinable:
        _log.warning("rows of %s influence one another, so its requests run alone", bundle.path)
    return is_joinable


def _prove_padding(
    bundle: Bundle, runner: Runner, signature: Signature, config: ServingConfig
) -> Padding | None:
    """Return the padding of a model once example rows gave the same answer with and without it."""
    padding = Padding.for_signature(config.padding or bundle.runtime.padding, signature)
    if padding is None:
        if config.padding:
            _log.warning(
                "%s is not padded: its inputs are %s, and `padding` names %s",
                bundle.path,
                ", ".join(f"{spec.name} {list(spec.shape)}" for spec in signature.inputs),
                ", ".join(config.padding),
            )
        return None
    try:
        short, long = (_sequences(signature, length) for length in (_SHORT, _LONG))
        joined = padding.join([short, long])
        outputs = {name: array[:1] for name, array in runner.run(joined).items()}
        found = padding.cut(outputs, short, joined)
        expected = runner.run(short)
    except (FairleadError, ValueError) as exc:
        _log.warning("padding of %s failed, so lengths are kept apart: %s", bundle.path, exc)
        return None
    if all(_agree(found[name], array) for name, array in expected.items()):
        return padding
    _log.warning("%s sees its padding, so its requests of other lengths run apart", bundle.path)
    return None


def _sequences(signature: Signature, length: int) -> dict[str, Array]:
    """Return one row of ones per input: tokens that exist, and a mask that shows all of them."""
    return {
        spec.name: np.ones((1, length, *spec.shape[2:]), spec.numpy_dtype)
        for spec in signature.inputs
    }


def _agree(one: Array, other: Array) -> bool:
    """Say whether outputs are equal but for rounding; quantized models round by the batch."""
    if one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return True
    first, second = one.astype(np.float64), other.astype(np.float64)
    scale = np.abs(second[np.isfinite(second)]).max(initial=0.0)
    return bool(np.allclose(first, second, rtol=0, atol=_JOIN_TOLERANCE * scale, equal_nan=True))
