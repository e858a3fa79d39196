"""What Prometheus may ask of a server, in a registry of its own.

Requests are tallied some hundred at a time, and become metric families only when somebody asks.
Everything happens in the event loop's thread, so nothing needs a lock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from fairlead.backends.prediction_log import LogCounts
from fairlead.core.extras import requires
from fairlead.serve.inference.arms import Arm
from fairlead.serve.inference.served import ServedRequest, ServedTogether

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from fairlead.serve.inference.cache import ResponseCache
    from fairlead.serve.inference.dataplane import Dataplane

__all__ = ["ArmTally", "ServingMetrics"]

_MS = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4)
_FOLD = 512
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class _Tally:
    """A histogram: how many values fell into each bucket, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add_all(self, values: Sequence[float]) -> None:
        """Add many values for little more than one."""
        found = np.asarray(values)
        places = np.searchsorted(self.bounds, found)
        counts = np.bincount(places, minlength=len(self.counts)).tolist()
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.total += float(found.sum())

    def add_often(self, values: Sequence[float], times: Sequence[int]) -> None:
        """Add each value as often as is said."""
        places = np.searchsorted(self.bounds, values).tolist()
        for place, value, count in zip(places, values, times, strict=True):
            self.counts[place] += count
            self.total += value * count

    def buckets(self, unit: float) -> list[tuple[str, float]]:
        """Return cumulated counts by upper bound, the bounds divided by `unit`."""
        found: list[tuple[str, float]] = []
        count = 0
        for bound, here in zip((*self.bounds, None), self.counts, strict=True):
            count += here
            found.append(("+Inf" if bound is None else repr(bound / unit), float(count)))
        return found


class ArmTally:
    """What is tallied of one arm.

    Attributes:
        total: Times from arrival to answer, in ms.
        queue: Times of waiting for the model, in ms.
        run: Times that the model ran, in ms.
        batch: Rows that ran together.
        steps: Step of an ensemble → its times, in ms.
        rows: Rows that were predicted.
        ended: `ran`, `cached` or `failed` → requests, and their times in ms.
        batches: Rows that ran together → runs of the model, and their times in ms.
    """

    __slots__ = ("batch", "batches", "ended", "queue", "rows", "run", "steps", "total")

    def __init__(self) -> None:
        self.total, self.queue, self.run = _Tally(_MS), _Tally(_MS), _Tally(_MS)
        self.batch = _Tally(_ROWS)
        self.steps: dict[str, _Tally] = {}
        self.rows = 0
        self.ended: dict[str, tuple[int, float]] = {}
        self.batches: dict[int, tuple[float, float]] = {}

    def end(self, how: str, total_ms: Sequence[float]) -> None:
        """Count requests by how they ended."""
        count, spent_ms = self.ended.get(how, (0, 0.0))
        self.ended[how] = (count + len(total_ms), spent_ms + sum(total_ms))

    def count_batches(
        self, batch_rows: Sequence[int], n_rows: Sequence[int], run_ms: Sequence[float]
    ) -> None:
        """Count runs of the model by their rows: each request is its share of one."""
        sizes = np.asarray(batch_rows)
        shares = np.asarray(n_rows) / sizes
        runs, spent_ms = np.bincount(sizes, shares), np.bincount(sizes, shares * run_ms)
        for size in np.flatnonzero(runs).tolist():
            known = self.batches.get(size, (0.0, 0.0))
            self.batches[size] = (known[0] + float(runs[size]), known[1] + float(spent_ms[size]))

    def count_runs(self, rows: Sequence[int], run_ms: Sequence[float]) -> None:
        """Count runs of the model by their rows, one by one."""
        for size, spent_ms in zip(rows, run_ms, strict=True):
            known = self.batches.get(size, (0.0, 0.0))
            self.batches[size] = (known[0] + 1.0, known[1] + spent_ms)


_Together = tuple[Arm, Sequence[float], Sequence[float], float, int]
"""Arm, times from arrival to answer and of waiting, time and rows of the run they shared."""
_Fresh = tuple[Arm, int, float, float, float, int, int]
_FIELDS = ("arm", "status", "total_ms", "queue_ms", "run_ms", "batch_rows", "n_rows")
_PICK: Callable[[ServedRequest], _Fresh] = itemgetter(
    *(ServedRequest._fields.index(name) for name in _FIELDS)
)


def _grouped(fresh: list[_Fresh]) -> Iterable[tuple[tuple[Arm, int, bool], list[_Fresh]]]:
    """Group by arm, status, and whether the answer was given before: nothing ran."""
    groups: dict[tuple[Arm, int, bool], list[_Fresh]] = {}
    for item in fresh:
        groups.setdefault((item[0], item[1], item[1] == 200 and item[5] == 0), []).append(item)
    return groups.items()


class ServingMetrics:
    """Counts and times requests."""

    def __init__(self, service: str, logged: Callable[[], LogCounts]) -> None:
        """Create the metrics.

        Args:
            service: Name of the service, the label `model`.
            logged: Returns what became of the predictions so far.

        Raises:
            MissingExtraError: `prometheus_client` is not installed.
        """
        with requires("serve", needed_by="measuring a server"):
            # Only looked for: a server that nobody asks for its metrics does without its weight.
            if find_spec("prometheus_client") is None:
                raise ModuleNotFoundError(name="prometheus_client")

        self._service = service
        self._logged = logged
        self._arms: dict[tuple[str, str, str], ArmTally] = {}
        self._requests: Counter[tuple[str, str, str, int]] = Counter()
        self._fresh: list[_Fresh] = []
        self._together: list[_Together] = []
        self._n_together = 0
        self._dataplane: Dataplane | None = None
        self._cache: ResponseCache | None = None

    @cached_property
    def registry(self) -> CollectorRegistry:
        """The `prometheus_client` registry with these metrics and those of the process."""
        import prometheus_client as prom

        registry = prom.CollectorRegistry()
        registry.register(self)
        prom.ProcessCollector(registry=registry)
        return registry

    @property
    def content_type(self) -> str:
        """The content type of what `render` returns."""
        from prometheus_client import CONTENT_TYPE_LATEST

        return str(CONTENT_TYPE_LATEST)

    def observe(self, requests: Sequence[ServedRequest]) -> None:
        """Count requests that an arm took; what they have in common is counted once for many."""
        if isinstance(requests, ServedTogether):
            self._take_together(requests)
        else:
            self._fresh.extend(map(_PICK, requests))
            for served in requests:
                if served.parts_ms:
                    self._count_steps(served.arm, served.parts_ms)
        if len(self._fresh) + self._n_together >= _FOLD or not requests:
            self._fold()

    def _take_together(self, served: ServedTogether) -> None:
        self._count_steps_of(served)
        if len(served.ids) == 1:
            self._fresh.append(
                (
                    served.arm, 200, served.total_ms[0], served.queue_ms[0], served.run_ms,
                    served.batch_rows, served.n_rows[0],
                )
            )  # fmt: skip
            return
        self._together.append(
            (served.arm, served.total_ms, served.queue_ms, served.run_ms, served.batch_rows)
        )
        self._n_together += len(served.ids)

    def _count_steps_of(self, served: ServedTogether) -> None:
        if served.parts_ms:
            for _ in served.ids:
                self._count_steps(served.arm, served.parts_ms)

    def _fold(self) -> None:
        """Put what is fresh into the tallies."""
        if self._together:
            self._fold_together()
        fresh, self._fresh = self._fresh, []
        for (arm, status, is_cached), group in _grouped(fresh):
            key = (arm.model, arm.version, arm.name)
            self._requests[(*key, status)] += len(group)
            tally = self._tally(arm)
            _, _, total_ms, queue_ms, run_ms, batch_rows, n_rows = zip(*group, strict=True)
            tally.total.add_all(total_ms)
            how = "failed" if status != 200 else "cached" if is_cached else "ran"
            tally.end(how, total_ms)
            if status != 200:
                continue
            tally.rows += sum(n_rows)
            if not is_cached:
                tally.queue.add_all(queue_ms)
                tally.run.add_all(run_ms)
                tally.batch.add_all(batch_rows)
                tally.count_batches(batch_rows, n_rows, run_ms)

    def _fold_together(self) -> None:
        together, self._together, self._n_together = self._together, [], 0
        for arm in dict.fromkeys([each[0] for each in together]):
            batches = [each[1:] for each in together if each[0] is arm]
            totals, queues, runs, rows = zip(*batches, strict=True)
            sizes = [len(each) for each in totals]
            total_ms = list(chain.from_iterable(totals))
            self._requests[arm.model, arm.version, arm.name, 200] += len(total_ms)
            tally = self._tally(arm)
            tally.total.add_all(total_ms)
            tally.end("ran", total_ms)
            tally.rows += sum(rows)
            tally.queue.add_all(list(chain.from_iterable(queues)))
            tally.run.add_often(runs, sizes)
            tally.batch.add_often(rows, sizes)
            tally.count_runs(rows, runs)

    def _count_steps(self, arm: Arm, parts_ms: Mapping[str, float]) -> None:
        steps = self._tally(arm).steps
        for step, run_ms in parts_ms.items():
            steps.setdefault(step, _Tally(_MS)).add(run_ms)

    def _tally(self, arm: Arm) -> ArmTally:
        key = (arm.model, arm.version, arm.name)
        tally = self._arms.get(key)
        if tally is None:
            tally = self._arms[key] = ArmTally()
        return tally

    def show_cache(self, cache: ResponseCache) -> None:
        """Tell of a response cache too."""
        self._cache = cache

    def tallies(self) -> Mapping[tuple[str, str, str], ArmTally]:
        """Return what was counted so far: model, version and arm → its tally."""
        self._fold()
        return self._arms

    @property
    def has_cache(self) -> bool:
        """Whether there is a response cache."""
        return self._cache is not None

    def count_rejected(self, status: int) -> None:
        """Count one request that no arm took."""
        self._requests[self._service, "", "none", status] += 1

    def render(self, dataplane: Dataplane | None) -> bytes:
        """Return everything in Prometheus's text format; without a dataplane, not its gauges."""
        from prometheus_client import generate_latest

        self._dataplane = dataplane
        self._fold()
        return bytes(generate_latest(self.registry))

    def collect(self) -> Iterator[Any]:
        """Yield the metric families; called by `prometheus_client`."""
        from prometheus_client.core import CounterMetricFamily

        requests = CounterMetricFamily(
            "fairlead_requests",
            "Requests by how they ended.",
            labels=("model", "version", "arm", "status"),
        )
        for (model, version, arm, status), count in sorted(self._requests.items()):
            requests.add_metric((model, version, arm, str(status)), count)
        yield requests
        yield from self._times()
        counts = self._logged()
        for name, text, value in (
            ("logged", "Predictions written.", counts.n_written),
            ("dropped", "Predictions that could not be written.", counts.n_dropped),
            ("left_out", "Predictions that the log's rules did not want.", counts.n_left_out),
        ):
            yield CounterMetricFamily(f"fairlead_predictions_{name}", text, value=value)
        yield from self._gauges()

    def _times(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        labels = ("model", "version", "arm")
        kinds: dict[str, tuple[str, Callable[[ArmTally], _Tally], float]] = {
            "fairlead_request_duration_seconds": (
                "From arrival to answer.", lambda arm: arm.total, 1e3),
            "fairlead_queue_duration_seconds": (
                "Waiting for the model.", lambda arm: arm.queue, 1e3),
            "fairlead_run_duration_seconds": ("The model running.", lambda arm: arm.run, 1e3),
            "fairlead_batch_rows": ("Rows that ran together.", lambda arm: arm.batch, 1.0),
        }  # fmt: skip
        for name, (text, choose, unit) in kinds.items():
            family = HistogramMetricFamily(name, text, labels=labels)
            for where, tallies in sorted(self._arms.items()):
                tally = choose(tallies)
                family.add_metric(where, tally.buckets(unit), sum_value=tally.total / unit)
            yield family
        steps = HistogramMetricFamily(
            "fairlead_step_duration_seconds", "One step of an ensemble running.",
            labels=(*labels, "step"),
        )  # fmt: skip
        for where, tallies in sorted(self._arms.items()):
            for step, tally in tallies.steps.items():
                steps.add_metric((*where, step), tally.buckets(1e3), sum_value=tally.total / 1e3)
        yield steps
        rows = CounterMetricFamily("fairlead_rows", "Rows that were predicted.", labels=labels)
        for where, tallies in sorted(self._arms.items()):
            rows.add_metric(where, tallies.rows)
        yield rows

    def _gauges(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        labels = ("model", "arm")
        weight = GaugeMetricFamily(
            "fairlead_traffic_weight", "Share of the requests.", labels=labels
        )
        pending = GaugeMetricFamily(
            "fairlead_pending_requests", "Requests that wait or run.", labels=labels
        )
        if self._dataplane is not None:
            shares = self._dataplane.traffic.split.weights
            for name, arm in self._dataplane.arms.items():
                weight.add_metric((self._service, name), shares.get(name, 0.0))
                pending.add_metric((self._service, name), arm.queue.n_pending)
        yield weight
        yield pending
        yield from self._cached()

    def _cached(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        cache = self._cache
        if cache is None:
            return
        asked = CounterMetricFamily(
            "fairlead_cache_requests", "Requests that asked the response cache.", labels=("found",)
        )
        asked.add_metric(("hit",), cache.n_hits)
        asked.add_metric(("miss",), cache.n_misses)
        yield asked
        yield GaugeMetricFamily(
            "fairlead_cache_bytes", "Memory of the response cache.", value=cache.size_bytes
        )
