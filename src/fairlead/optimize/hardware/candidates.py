"""Which settings are compared: threads, graph levels, and whatever else can run the model here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np

from fairlead.backends.onnxruntime import available_providers
from fairlead.backends.openvino import OPENVINO, has_openvino
from fairlead.backends.runners import open_runner
from fairlead.backends.torch_runner import TORCH_SUFFIXES
from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.errors import FairleadError
from fairlead.core.ports import Array, Feeds, Runner

__all__ = ["agree", "candidate_settings", "other_providers", "own_provider", "still_equal"]

_CPU = "CPUExecutionProvider"
_NO_HARDWARE = {_CPU, "AzureExecutionProvider"}
"""The CPU is compared anyway; the other one sends rows over the network."""
_SMALL_MODEL_BYTES = 256 * 2**20
"""Larger models are tried at one graph level only: every setting holds a copy in memory."""
_LEVELS = ("all", "basic")
_TOLERANCE = 1e-3


def own_provider(bundle: Bundle) -> str:
    """Return the bundle's execution provider, or the CPU where this machine lacks it."""
    wanted = bundle.runtime.execution_provider
    if bundle.manifest.kind != "onnx":
        return wanted
    present = (*available_providers(), *((OPENVINO,) if has_openvino() else ()))
    return wanted if wanted in present else _CPU


def other_providers(own: str, runtime: str) -> tuple[str, ...]:
    """Return what else is installed that may run an ONNX model.

    Args:
        own: The provider that is compared anyway.
        runtime: `any`, or `onnxruntime` where nothing else may run the result.
    """
    found = [name for name in available_providers() if name not in _NO_HARDWARE]
    if runtime == "any" and has_openvino():
        found.append(OPENVINO)
    if own != _CPU:
        found.append(_CPU)
    return tuple(name for name in found if name != own)


def candidate_settings(
    bundle: Bundle, own: RuntimeSettings, cpus: int, runtime: str
) -> dict[str, RuntimeSettings]:
    """Return the settings to compare, the most frugal first.

    Idle threads never spin: under a CPU quota, or beside another session, spinning multiplies the
    CPU time of a run without making it faster.

    Args:
        bundle: The model.
        own: Its settings on this machine.
        cpus: CPUs that this process may use.
        runtime: `any`, or `onnxruntime` where nothing else may run the result.
    """
    threads = sorted({min(2**power, cpus) for power in range(cpus.bit_length() + 1)})
    if bundle.manifest.kind != "onnx":
        return _torch_settings(bundle, own, threads) or {"as packed": own}
    levels = _LEVELS if bundle.size_bytes <= _SMALL_MODEL_BYTES else _LEVELS[:1]
    found = {
        f"{_threads(count)}, graph level {level}": _with(
            own, intra_op_threads=count, graph_optimization=level
        )
        for count in threads
        for level in levels
    }
    for name in other_providers(own.execution_provider, runtime):
        short = name.removesuffix("ExecutionProvider")
        # A GPU leaves the threads of the CPU idle.
        counts = threads if name in (OPENVINO, _CPU) else threads[:1]
        for count in counts:
            found[f"{_threads(count)}, on {short}"] = _with(
                own, intra_op_threads=count, graph_optimization="all", execution_provider=name
            )
    return found


def _torch_settings(
    bundle: Bundle, own: RuntimeSettings, threads: list[int]
) -> dict[str, RuntimeSettings]:
    """Return the settings for a program that torch runs; none when something else runs it."""
    if bundle.model_path.suffix not in TORCH_SUFFIXES:
        return {}
    found = {
        f"{_threads(count)}, torch as it is": _with(
            own, intra_op_threads=count, torch_compile=False
        )
        for count in threads
    }
    # Compiling takes up to minutes, so only the two ends are compiled. TorchScript is tried as
    # well: the refusal says why.
    for count in (threads[0], threads[-1]):
        found[f"{_threads(count)}, torch.compile"] = _with(
            own, intra_op_threads=count, torch_compile=True
        )
    return found


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _with(own: RuntimeSettings, **changes: object) -> RuntimeSettings:
    return own.model_copy(update={"allow_spinning": False, **changes})


@contextmanager
def still_equal(
    bundle: Bundle,
    own: RuntimeSettings,
    settings: Mapping[str, RuntimeSettings],
    feeds: Feeds,
    trust: bool,
) -> Iterator[tuple[Runner, dict[str, Runner], dict[str, str]]]:
    """Open the model under all settings; those that fail or answer otherwise are left out.

    Args:
        bundle: The model.
        own: Its settings on this machine; it must run under these.
        settings: Name → settings to compare.
        feeds: A few rows.
        trust: Whether code that came with the model may run.

    Yields:
        The model as it is, name → the model under other settings, and name → why it is left out.
    """
    left_out: dict[str, str] = {}
    runners: dict[str, Runner] = {}
    with ExitStack() as stack:
        before = open_runner(bundle, runtime=own, trust=trust)
        stack.callback(before.close)
        expected = before.run(feeds)
        for name, one in settings.items():
            try:
                runner = open_runner(bundle, runtime=one, trust=trust)
                stack.callback(runner.close)
                is_equal = agree(expected, runner.run(feeds))
            except FairleadError as exc:
                left_out[name] = exc.message
                continue
            is_same_kind = one.execution_provider == own.execution_provider
            if is_equal or (is_same_kind and not one.torch_compile):
                runners[name] = runner
            else:
                left_out[name] = "it answers otherwise than the original"
        yield before, runners, left_out


def agree(expected: Mapping[str, Array], found: Mapping[str, Array]) -> bool:
    """Whether two models gave the same answers, but for rounding."""
    for name, old in expected.items():
        new = found[name]
        if old.shape != new.shape:
            return False
        if old.dtype.kind != "f":
            if not np.array_equal(old, new):
                return False
            continue
        finite = np.abs(old[np.isfinite(old)])
        size = float(finite.max(initial=0.0)) or 1.0
        if not np.allclose(old, new, rtol=0, atol=_TOLERANCE * size, equal_nan=True):
            return False
    return True
