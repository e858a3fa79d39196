"""Ensembles executed: arrays go from step to step in memory, nothing is serialised between."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.ensemble import REQUEST, EnsemblePlan, PlannedStep
from fairlead.core.errors import BundleError, FairleadError, IntegrityError
from fairlead.core.ports import Array, Feeds, Outputs, Runner, StreamingRunner
from fairlead.core.signature import Signature, conform
from fairlead.core.values import describe_validation_error
from fairlead.measure.combining import combine
from fairlead.measure.quality import run_batches

__all__ = ["PLAN_FILE", "EnsembleRunner", "gathered", "read_plan", "step_bundles"]

PLAN_FILE = "ensemble.json"
"""File of a bundle that says how its steps feed one another."""


def read_plan(folder: Path) -> EnsemblePlan:
    """Read how the steps of an ensemble feed one another.

    Raises:
        BundleError: The file is missing, or not what packing writes.
    """
    path = folder / PLAN_FILE
    hint = "make the bundle again with `fairlead pack`"
    try:
        return EnsemblePlan.model_validate(json.loads(path.read_text()))
    except ValidationError as exc:
        reason = describe_validation_error(exc)
        raise BundleError(f"{path} does not fit: {reason}", hint=hint) from exc
    except (OSError, ValueError) as exc:
        raise BundleError(f"{path} cannot be read: {exc}", hint=hint) from exc


def step_bundles(bundle: Bundle) -> dict[str, Bundle]:
    """Return step → its bundle, for the steps that have one.

    Raises:
        IntegrityError: A step is not the bundle that was packed.
    """
    found = {}
    for step in read_plan(bundle.path).steps:
        if step.folder is None:
            continue
        part = Bundle.open(bundle.path / step.folder, verify=False)
        if part.digest != step.digest:
            raise IntegrityError(
                f"step `{step.name}` of {bundle.path} is {part.version}, "
                f"but {step.version} was packed",
                hint="a bundle is never edited: make a new one with `fairlead pack`",
            )
        found[step.name] = part
    return found


class EnsembleRunner:
    """The steps of an ensemble in memory; implements the ports `Runner` and `StreamingRunner`."""

    def __init__(
        self,
        bundle: Bundle,
        open_step: Callable[[Bundle, RuntimeSettings], Runner],
        *,
        runtime: RuntimeSettings | None = None,
    ) -> None:
        """Load every step.

        Args:
            bundle: The ensemble.
            open_step: Loads the model of one step.
            runtime: Settings whose threads replace those of steps that were never tuned.

        Raises:
            UntrustedError: A step would run code that nobody approved.
            ModelError: A step cannot be loaded.
            BundleError: The plan cannot be read.
        """
        self._signature = bundle.signature
        self._plan = read_plan(bundle.path)
        self._runners: dict[str, Runner] = {}
        with ExitStack() as stack:
            for name, part in step_bundles(bundle).items():
                chosen = _runtime_of(part, runtime or bundle.runtime)
                self._runners[name] = open_step(part, chosen)
                stack.callback(self._runners[name].close)
            stack.pop_all()

    @property
    def signature(self) -> Signature:
        """Names, dtypes and shapes, batch dimension first and free."""
        return self._signature

    @property
    def runs_foreign_code(self) -> bool:
        """Whether a step runs code that came with it."""
        return any(getattr(one, "runs_foreign_code", False) for one in self._runners.values())

    @property
    def is_streaming(self) -> bool:
        """Whether the last step gives the whole answer, and piece by piece."""
        last = self._plan.steps[-1].name
        runner = self._runners.get(last)
        gives_all = all(s.partition(".")[0] == last for s in self._plan.outputs.values())
        return gives_all and isinstance(runner, StreamingRunner) and runner.is_streaming

    def run(self, feeds: Feeds) -> Outputs:
        """Execute all steps on one batch.

        Raises:
            SignatureError: An input is missing or of the wrong dtype or shape.
            ModelError: A step failed; the message names it.
        """
        values = self._begin(feeds)
        times: dict[str, float] = {}
        for step in self._plan.steps:
            started = time.perf_counter()
            self._run_step(step, values)
            times[step.name] = (time.perf_counter() - started) * 1e3
        return Outputs({n: values[s] for n, s in self._plan.outputs.items()}, times)

    def stream(self, feeds: Feeds) -> Iterator[dict[str, Array]]:
        """Execute all steps but the last, and yield the pieces of the last.

        Raises:
            SignatureError: An input is missing or of the wrong dtype or shape.
            ModelError: A step failed; the message names it.
        """
        values = self._begin(feeds)
        for step in self._plan.steps[:-1]:
            self._run_step(step, values)
        last = self._plan.steps[-1]
        runner = self._runners[last.name]
        names = {source.partition(".")[2]: n for n, source in self._plan.outputs.items()}
        if isinstance(runner, StreamingRunner):
            for piece in runner.stream(gathered(last, values)):
                yield {names[name]: array for name, array in piece.items() if name in names}

    def close(self) -> None:
        """Free every step."""
        for runner in self._runners.values():
            runner.close()
        self._runners = {}

    def _begin(self, feeds: Feeds) -> dict[str, Array]:
        ready = conform(feeds, self._signature)
        return {f"{REQUEST}.{name}": array for name, array in ready.items()}

    def _run_step(self, step: PlannedStep, values: dict[str, Array]) -> None:
        arrays = gathered(step, values)
        if step.combine is not None:
            answer = combine(step.combine, list(arrays.values()), step.weights, step.labels)
            values[f"{step.name}.{step.combine}"] = answer
            return
        runner = self._runners[step.name]
        try:
            outputs = _run_freely(runner, arrays)
        except FairleadError as exc:
            exc.message = f"step `{step.name}`: {exc.message}"
            raise
        values.update({f"{step.name}.{name}": array for name, array in outputs.items()})


def _runtime_of(part: Bundle, whole: RuntimeSettings) -> RuntimeSettings:
    if part.runtime.is_tuned or part.runtime.intra_op_threads is not None:
        return part.runtime
    return part.runtime.model_copy(update={"intra_op_threads": whole.intra_op_threads})


def _run_freely(runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a step; one with a fixed batch dimension gets its own number of rows at a time."""
    is_fixed = any(spec.shape and spec.shape[0] > 0 for spec in runner.signature.inputs)
    return run_batches(runner, feeds) if is_fixed else runner.run(feeds)


def gathered(step: PlannedStep, values: Mapping[str, Array]) -> dict[str, Array]:
    """Return the inputs of a step; several sources become the columns of one array."""
    feeds = {}
    for name, sources in step.inputs.items():
        if len(sources) == 1:
            feeds[name] = values[sources[0]]
        else:
            feeds[name] = np.stack([values[s].reshape(len(values[s])) for s in sources], axis=1)
    return feeds
