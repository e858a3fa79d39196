"""What every method works on: the model, rows to learn from, rows that judge, and a judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fairlead.backends.dense_student import feeds_of, munge, table_of
from fairlead.backends.runners import open_onnx
from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.ports import Feeds, Progress, Runner
from fairlead.core.report import Measure, Outcome, Table
from fairlead.measure.answers import count_lost_rows
from fairlead.measure.budget import QualityDrop
from fairlead.measure.judging import Judge
from fairlead.measure.quality import run_batches
from fairlead.optimize.compression.config import CompressionConfig

if TYPE_CHECKING:
    from fairlead.backends.torch_material import TorchMaterial

__all__ = ["Bench", "Compressed", "Found", "Quantizer"]

Quantizer = Callable[[Bundle, Dataset, float, Path], Outcome[Bundle]]
"""Quantizes a bundle on rows within a budget, into a folder."""

_FIT_SHARE = 0.6
_FEWEST_TO_DIVIDE = 20


@dataclass(frozen=True)
class Compressed:
    """One compressed version of a model.

    Attributes:
        method: Id of the method that made it.
        change: What was done, one phrase.
        model: The compressed model, ONNX.
        runtime: Settings it runs with, when they are not those of the original.
        measures: Numbers for the report.
        tables: Tables for the report.
        details: Machine-readable rest.
        packages: Versions of the libraries that made it.
        is_asked: Whether what it gains is neither bytes nor time but what was asked for.
        notes: What a reader should know.
    """

    method: str
    change: str
    model: bytes = field(repr=False)
    runtime: RuntimeSettings | None = None
    measures: tuple[Measure, ...] = ()
    tables: tuple[Table, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    is_asked: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What one method found.

    Attributes:
        method: Its id.
        ladder: The strongest version that the judge let pass, and gentler ones; empty when none.
        reason: Why there was nothing to try; empty when something was tried.
        advice: What to do about that.
    """

    method: str
    ladder: tuple[Compressed, ...] = ()
    reason: str = ""
    advice: str = ""


class Bench:
    """A bundle on the bench.

    Attributes:
        bundle: The original.
        config: The settings.
        judge: Says what a change cost.
        search: Rows that choose, with their labels.
        fit: Rows to learn from; never those that choose.
        feeds: The search rows as tensors.
        runtime: Settings that versions run with: those of the bundle, on one thread.
        training: The torch module and its training data; None without.
        quantize: Quantizes a bundle; None when nobody handed it in.
        progress: Hears how far the work is.
        scratch: Folder for files in between.
    """

    def __init__(
        self,
        bundle: Bundle,
        rows: Dataset,
        config: CompressionConfig,
        judge: Judge,
        *,
        scratch: Path,
        transfer: Dataset | None = None,
        training: TorchMaterial | None = None,
        quantize: Quantizer | None = None,
        progress: Progress,
    ) -> None:
        """Run the original on the rows that choose.

        Raises:
            DataError: The rows do not fit the model, or the metric cannot be computed on them.
            ModelError: The model cannot be run.
        """
        self.bundle, self.config, self.judge = bundle, config, judge
        self.training, self.quantize = training, quantize
        self.progress, self.scratch = progress, scratch
        self.whole = rows
        self.search, self.fit = rows, transfer or rows
        if transfer is None and training is None and rows.n_rows >= _FEWEST_TO_DIVIDE:
            self.fit, self.search = rows.split(_FIT_SHARE, seed=config.seed)
        self.feeds = self.tensors(self.search)
        self.runtime = bundle.runtime.model_copy(update={"intra_op_threads": 1})
        self.original = open_onnx(bundle.model_path, self.runtime)
        self.before = self.answers(self.original, self.feeds)
        self.drops: list[tuple[str, QualityDrop]] = []
        judge(self.before, self.before, self.search.labels)

    def tensors(self, rows: Dataset) -> dict[str, Array]:
        """Return rows as the input tensors of the model."""
        manifest = self.bundle.manifest
        return bind(rows, self.bundle.signature, feature_columns=manifest.feature_columns)

    def rows_to_learn(self, max_rows: int, copies: int) -> dict[str, Array]:
        """Return rows to learn from and, where all inputs are numbers, rows made from them.

        Args:
            max_rows: Most rows to begin with.
            copies: Rows made per row.
        """
        feeds = {name: array[:max_rows] for name, array in self.tensors(self.fit).items()}
        table = table_of(feeds)
        if table is None or not copies:
            return feeds
        made = feeds_of(munge(table, copies, seed=self.config.seed), feeds)
        return {name: np.concatenate([array, made[name]]) for name, array in feeds.items()}

    def answers(self, runner: Runner, feeds: Feeds) -> dict[str, Array]:
        """Run a model over rows, as many at once as serving does."""
        return run_batches(runner, feeds, self.bundle.runtime.max_batch_size)

    def drop_of(self, model: bytes, method: str) -> QualityDrop:
        """Judge a version on the search rows; this is one evaluation."""
        runner = open_onnx(model, self.runtime)
        try:
            after = self.answers(runner, self.feeds)
        finally:
            runner.close()
        drop = self.drop_between(after)
        self.drops.append((method, drop))
        self.progress.advance()
        return drop

    def drop_between(self, after: Mapping[str, Array]) -> QualityDrop:
        """Judge answers to the search rows against those of the original."""
        drop = self.judge(self.before, after, self.search.labels)
        if count_lost_rows(self.before, after):
            return drop.model_copy(update={"value": math.inf, "upper": math.inf})
        return drop

    def is_within(self, drop: QualityDrop) -> bool:
        """Whether a drop keeps the budget."""
        if drop.budget == 0 and drop.n_worse:
            return False
        return drop.is_within(allow_unproven=self.config.allow_unproven)

    def is_good(self, model: bytes, method: str) -> bool:
        """Whether a version keeps the budget on the search rows."""
        return self.is_within(self.drop_of(model, method))

    def close(self) -> None:
        """Free the original."""
        self.original.close()
