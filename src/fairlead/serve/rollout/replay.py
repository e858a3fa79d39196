"""Traffic that is replayed from rows of data, with the labels where they are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fairlead.core.bundle import BundleManifest
from fairlead.core.dataset import Array
from fairlead.core.errors import DataError, EndpointError, ModelError
from fairlead.measure.quality import predicted, row_scores
from fairlead.serve.rollout.config import RolloutConfig
from fairlead.serve.rollout.target import Judgement

if TYPE_CHECKING:
    from fairlead.backends.endpoint import RequestOutcome
    from fairlead.backends.load import Sample, Sender

__all__ = ["ReplayTraffic"]


@dataclass(frozen=True)
class _Sent:
    row: int
    outputs: dict[str, Array]


class ReplayTraffic:
    """Sends rows in random order, over and over, in blocks that are answered whole."""

    is_replayed = True

    def __init__(
        self,
        open_sender: Callable[[], Sender],
        *,
        n_rows: int,
        config: RolloutConfig,
        manifests: Mapping[str, BundleManifest],
        labels: Array | None,
        name: str,
    ) -> None:
        """Prepare the traffic; threads start, but nothing is sent yet.

        Args:
            open_sender: Opens one connection that knows the rows.
            n_rows: Number of rows.
            config: Says how fast and how many at a time.
            manifests: Arm → what its bundle gives.
            labels: The truth, shape (n_rows,), or None.
            name: Prefix of the request ids, unlike any other on this server.
        """
        from fairlead.backends.load import LoadGenerator

        self._config = config
        self._manifests = manifests
        self._labels = labels
        self._n_rows = n_rows
        self._name = name
        self._count = 0
        self._rng = np.random.default_rng(config.seed)
        self._order: list[int] = []
        self._waiting: dict[str, _Sent] = {}
        self.lost = 0
        self._load = LoadGenerator(open_sender, connections=config.concurrency)

    @property
    def n_labelled(self) -> int:
        """Rows with a known label."""
        return self._n_rows if self._labels is not None else 0

    @property
    def pending(self) -> int:
        """Answers that came back and whose outcome has not been seen yet."""
        return len(self._waiting)

    def advance(self) -> int:
        """Send one block and wait until every request is answered.

        Raises:
            DataError: The server refuses every row of the block.
            EndpointError: No request of the block was answered.
        """
        from fairlead.backends.load import poisson_offsets

        self.lost += len(self._waiting)
        self._waiting.clear()
        size = self._config.check_requests
        rows = [self._next_row() for _ in range(size)]
        ids = [f"{self._name}-{self._count + index}" for index in range(size)]
        self._count += size
        rate = self._config.rate_rps
        offsets = None if rate is None else poisson_offsets(rate, size, self._rng)
        samples = self._load.run(rows, ids, offsets_s=offsets)
        _refuse_silence(samples)
        self._waiting = {
            sample.request_id: _Sent(sample.row, sample.answer.outputs)
            for sample in samples
            if sample.answer.status
        }
        self.lost += size - len(self._waiting)
        return size

    def judge(self, outcome: RequestOutcome) -> Judgement:
        """Compare the answer with the label of its row."""
        sent = self._waiting.pop(outcome.id, None)
        if sent is None or outcome.status != 200:
            return Judgement()
        is_finite = all(
            bool(np.isfinite(array).all())
            for array in sent.outputs.values()
            if array.dtype.kind == "f"
        )
        manifest = self._manifests[outcome.arm]
        return Judgement(
            is_finite, sent.row, self._loss(manifest, sent), _prediction(manifest, sent)
        )

    def close(self) -> None:
        """End the threads and close the connections."""
        self._load.close()

    def _next_row(self) -> int:
        if not self._order:
            self._order = self._rng.permutation(self._n_rows).tolist()
        return self._order.pop()

    def _loss(self, manifest: BundleManifest, sent: _Sent) -> float | None:
        if self._labels is None:
            return None
        label = self._labels[sent.row : sent.row + 1]
        score = float(row_scores(manifest, sent.outputs, label)[0])
        return -score if manifest.task == "regression" else 1.0 - score


def _prediction(manifest: BundleManifest, sent: _Sent) -> str | float | None:
    try:
        value: Any = predicted(manifest, sent.outputs)[0]
    except (ModelError, ValueError):
        return None
    return float(value) if isinstance(value, np.floating) else str(value)


def _refuse_silence(samples: list[Sample]) -> None:
    if any(sample.answer.status == 200 for sample in samples):
        return
    first = samples[0].answer
    if all(sample.answer.status == 0 for sample in samples):
        raise EndpointError(
            f"the server no longer answers: {first.error}",
            hint="see what it said with `fairlead serve status`, and start it again",
        )
    if all(400 <= sample.answer.status < 500 for sample in samples):
        raise DataError(
            f"the server refuses every row: {first.error}",
            hint="give the data that the model was packed with, and name --labels",
        )
