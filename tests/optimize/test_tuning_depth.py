"""What tuning looks at beyond threads, levels and batches."""

from pathlib import Path

import numpy as np
import pytest

from fairlead.backends.machine_peaks import measure_peaks
from fairlead.backends.onnx_fusion import fuse_transformer
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.dataset import bind
from fairlead.core.signature import Signature, TensorSpec
from fairlead.optimize.hardware import HardwareConfig, tune
from fairlead.optimize.hardware.candidates import agree, still_equal
from fairlead.optimize.hardware.refining import refine
from fairlead.optimize.hardware.sequences import advise_on_padding
from tests.optimize import zoo

QUICK = HardwareConfig.parse({"time_limit_s": 0.5, "max_batch_size": 4})


def test_the_peaks_of_a_machine_are_plausible() -> None:
    peaks = measure_peaks()
    assert 1 < peaks.gflops < 5000
    assert 0.5 < peaks.gbytes_per_s < 1000
    assert peaks.int8_gops > 0


def test_the_report_names_what_limits_every_operator(digits_bundle, tmp_path) -> None:
    outcome = tune(digits_bundle, zoo.digits_dataset(), QUICK, out=tmp_path / "t")
    roofline = outcome.report.details["roofline"]
    kinds = {one["bound"] for one in roofline["operators"]}
    assert kinds <= {"compute-bound", "memory-bound", "overhead-bound"}
    assert sum(roofline["shares"].values()) == pytest.approx(1)
    changes = {row[0] for table in outcome.report.tables for row in table.rows}
    assert {"memory arena off", "inputs and outputs bound"} <= changes
    numbers = {item["name"] for item in outcome.report.details["bottleneck"]["numbers"]}
    assert (
        "achieved / peak FLOP/s" in numbers or not outcome.report.details["bottleneck"]["is_model"]
    )


def rows_of(bundle: Bundle, n_rows: int = 8) -> dict[str, np.ndarray]:
    columns = bundle.manifest.feature_columns
    feeds = bind(zoo.digits_dataset(), bundle.signature, feature_columns=columns)
    return {name: array[:n_rows] for name, array in feeds.items()}


def test_bound_inputs_and_no_arena_answer_alike(digits_bundle) -> None:
    plain = OnnxRunner(digits_bundle.model_path)
    other = OnnxRunner(
        digits_bundle.model_path,
        RuntimeSettings(intra_op_threads=1, io_binding=True, use_arena=False),
    )
    rows = rows_of(digits_bundle)
    assert agree(plain.run(rows), other.run(rows))
    plain.close()
    other.close()


def test_settings_that_cannot_run_are_left_out_with_the_reason(digits_bundle) -> None:
    own = RuntimeSettings(intra_op_threads=1)
    settings = {
        "one": own,
        "gpu": own.model_copy(update={"execution_provider": "TensorrtExecutionProvider"}),
    }
    rows = rows_of(digits_bundle)
    with still_equal(digits_bundle, own, settings, rows, False) as (_, runners, left_out):
        assert list(runners) == ["one"]
        assert "TensorrtExecutionProvider" in left_out["gpu"]


def test_answers_are_equal_up_to_rounding_only() -> None:
    one = {"y": np.ones((2, 2), np.float32), "label": np.array([1, 2])}
    assert agree(one, {**one, "y": one["y"] + 1e-5})
    assert not agree(one, {**one, "y": one["y"] + 1e-2})
    assert not agree(one, {**one, "label": np.array([1, 3])})


def test_only_what_pays_is_taken(digits_bundle) -> None:
    rows = rows_of(digits_bundle)
    found = refine(
        digits_bundle, RuntimeSettings(intra_op_threads=1), rows, rows, time_limit_s=0.5,
        is_as_good=lambda _: True,
    )  # fmt: skip
    for step in found.steps:
        assert step.is_taken == (
            step.ratio is not None and step.ratio.ci_low > 1.02 and not step.why
        )
    assert found.model is None


def test_a_network_without_attention_is_not_fused(digits_bundle) -> None:
    assert fuse_transformer(Path(digits_bundle.model_path)) is None


class Encoder:
    """Averages token values, by the mask or over everything."""

    def __init__(self, sees_padding: bool) -> None:
        self.sees_padding = sees_padding
        self.signature = Signature(
            inputs=(
                TensorSpec(name="ids", dtype="int64", shape=(-1, -1)),
                TensorSpec(name="attention_mask", dtype="int64", shape=(-1, -1)),
            ),
            outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, 1)),),
        )

    def run(self, feeds):
        mask = np.ones_like(feeds["ids"]) if self.sees_padding else feeds["attention_mask"]
        mean = (feeds["ids"] * mask).sum(1) / np.maximum(mask.sum(1), 1)
        return {"y": mean.astype(np.float32)[:, None]}

    def close(self) -> None:
        pass


def token_feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 20, 64)
    mask = (np.arange(64)[None, :] < lengths[:, None]).astype(np.int64)
    ids = np.where(mask == 1, rng.integers(10, 99, mask.shape), 7)
    return {"ids": ids, "attention_mask": mask}


def test_padding_that_is_not_seen_is_written_down() -> None:
    advice = advise_on_padding(
        Encoder(sees_padding=False), token_feeds(), batch_rows=8, time_limit_s=0.2, seed=0
    )
    assert advice.values == {"ids": 7.0, "attention_mask": 0.0}
    assert advice.waste.in_buckets < advice.waste.to_longest < advice.waste.as_given
    assert advice.gain is not None


def test_padding_that_is_seen_is_left_alone() -> None:
    advice = advise_on_padding(
        Encoder(sees_padding=True), token_feeds(), batch_rows=8, time_limit_s=0.2, seed=0
    )
    assert advice.values == {}
    assert advice.gain is None


def test_rows_of_fixed_length_need_no_advice(digits_bundle) -> None:
    runner = OnnxRunner(digits_bundle.model_path)
    assert (
        advise_on_padding(runner, rows_of(digits_bundle), batch_rows=8, time_limit_s=0.2, seed=0)
        is None
    )
    runner.close()
