"""What is decided where a GPU is, and what is said where none is; with one, it is used."""

import importlib
import time

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from fairlead.api.auto_measuring import Terms
from fairlead.api.auto_plan import ModelProfile, plan_trials
from fairlead.api.auto_shipping import measure_shipped
from fairlead.api.context import Context
from fairlead.api.optimizing_auto import optimize_auto
from fairlead.backends import onnxruntime as backend
from fairlead.backends.onnx_fp8 import insert_fp8
from fairlead.backends.onnx_graph import write_graph
from fairlead.backends.onnx_layers import layers_of, name_nodes
from fairlead.backends.onnx_qdq import observed_tensors
from fairlead.backends.onnx_ranges import collect_statistics, ranges_of
from fairlead.backends.onnxruntime import OnnxRunner, available_providers, provider_options
from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.errors import ConfigError, ModelError
from fairlead.measure.judging import Judge
from fairlead.measure.latency import clocks_for
from fairlead.optimize.hardware import HardwareConfig, tune
from fairlead.optimize.hardware.candidates import other_providers
from fairlead.optimize.quantization import QuantizationConfig, quantize
from fairlead.optimize.quantization.methods import METHODS
from fairlead.optimize.quantization.workbench import Workbench
from tests.optimize import zoo

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
ROWS = zoo.rows_for_dense(64)


@pytest.fixture
def bench(tmp_path):
    path = zoo.save(zoo.dense(last=None), tmp_path / "model.onnx")
    feeds = {"x": np.stack(list(ROWS.columns.values()), 1).astype(np.float32)}
    return Workbench.open(path, feeds, QuantizationConfig(), RuntimeSettings())


@pytest.fixture
def gpu(monkeypatch):
    """Make the decisions believe that CUDA and TensorRT are there."""
    for name in ("half", "fp8"):
        module = importlib.import_module(f"fairlead.optimize.quantization.methods.{name}")
        monkeypatch.setattr(module, "available_providers", lambda: (TENSORRT, CUDA, CPU))


def test_on_an_accelerator_wall_time_is_compared() -> None:
    assert clocks_for([CPU, "OpenVINO"]).cpu is time.process_time
    assert clocks_for([CPU, CUDA]).cpu is time.perf_counter
    assert clocks_for([TENSORRT]).cpu is time.perf_counter


@pytest.mark.parametrize(
    ("provider", "precision", "options"),
    [
        (CPU, "bf16", {}),
        (CUDA, "fp32", {"use_tf32": "0"}),
        (CUDA, "fp16", {"use_tf32": "1"}),
        (TENSORRT, "fp32", {"trt_fp16_enable": "0", "trt_bf16_enable": "0"}),
        (TENSORRT, "bf16", {"trt_fp16_enable": "0", "trt_bf16_enable": "1"}),
    ],
)
def test_no_provider_rounds_more_than_the_settings_say(provider, precision, options) -> None:
    settings = RuntimeSettings(execution_provider=provider, float_precision=precision)
    assert provider_options(settings) == options


def test_half_precision_is_offered_to_the_gpu_and_runs_there(bench, gpu) -> None:
    recipes = METHODS["fp16"](bench)
    assert {one.runtime.execution_provider for one in recipes if one.runtime} == {CUDA}
    assert {one.runtime.execution_provider for one in METHODS["bf16"](bench) if one.runtime} >= {
        TENSORRT
    }


def test_fp8_is_offered_where_tensorrt_is(bench, gpu) -> None:
    (recipe,) = METHODS["fp8"](bench)
    assert recipe.runtime.execution_provider == TENSORRT
    kinds = {tensor.data_type for tensor in onnx.load_from_string(recipe.model).graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in kinds
    assert len(recipe.rebuild(frozenset(recipe.layers))) > len(recipe.model)


def test_8_bit_floats_answer_nearly_alike(bench) -> None:
    graph = name_nodes(bench.static_graph)
    seen = collect_statistics(graph, observed_tensors(graph), bench.calibration)
    layers = [layer.name for layer in layers_of(graph)]
    made = insert_fp8(graph, layers, ranges_of(seen, "minmax", 99.99))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    before, after = (
        ort.InferenceSession(write_graph(one), options, providers=[CPU]).run(
            None, dict(bench.calibration)
        )[0]
        for one in (graph, made)
    )
    gap = np.abs(before - after).max() / np.abs(before).max()
    assert 0 < gap < 0.15


@pytest.mark.skipif(TENSORRT in available_providers(), reason="TensorRT is here")
def test_fp8_without_tensorrt_keeps_the_original_and_says_why(digits_bundle, tmp_path) -> None:
    config = QuantizationConfig(method="fp8", time_limit_s=0.2)
    outcome = quantize(digits_bundle, zoo.digits_dataset(), config, out=tmp_path / "out")
    assert outcome.report.verdict == "kept"
    assert "fp8 needs TensorrtExecutionProvider" in outcome.report.summary


class Pretended:
    """A model on a CPU that is kept busy, or on an accelerator: slower, but it costs no CPU."""

    def __init__(self, runner: OnnxRunner, *, is_away: bool) -> None:
        self._runner, self._is_away = runner, is_away
        self.signature, self.close = runner.signature, runner.close

    def run(self, feeds):
        if self._is_away:
            time.sleep(0.05)
        else:
            until = time.process_time() + 0.002
            while time.process_time() < until:
                pass
        return self._runner.run(feeds)


@pytest.fixture
def slow_gpu(monkeypatch):
    """Make tuning and shipping believe in a CUDA device that is slower than the CPU."""

    def opened(bundle, *, runtime=None, trust=False):
        settings = runtime or bundle.runtime
        plain = settings.model_copy(update={"execution_provider": CPU})
        runner = OnnxRunner(bundle.model_path, plain)
        return Pretended(runner, is_away=settings.execution_provider == CUDA)

    hardware = "fairlead.optimize.hardware"
    for module in (f"{hardware}.candidates", f"{hardware}.skill", "fairlead.api.auto_measuring"):
        monkeypatch.setattr(f"{module}.open_runner", opened)
    monkeypatch.setattr(f"{hardware}.candidates.available_providers", lambda: (CUDA, CPU))


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_tuning_does_not_take_a_slow_accelerator_for_a_fast_one(
    digits_bundle, tmp_path, slow_gpu, goal
) -> None:
    config = HardwareConfig(goal=goal, runtime="onnxruntime", max_threads=1, time_limit_s=0.3)
    outcome = tune(digits_bundle, zoo.digits_dataset(), config, out=tmp_path / "out")
    settings = next(t for t in outcome.report.tables if t.title == "Settings")
    assert any("on CUDA" in row[0] for row in settings.rows)
    assert outcome.noun.runtime.execution_provider == CPU


def test_what_ships_is_not_a_slow_accelerator_either(digits_bundle, slow_gpu) -> None:
    plain = digits_bundle.runtime
    away = plain.model_copy(update={"execution_provider": CUDA})
    terms = Terms(
        rows=zoo.digits_dataset(), judge=Judge(digits_bundle.manifest, 0.01), target="latency",
        batch_rows=4, time_limit_s=0.3, allow_unproven=True, trust=False, seed=0,
    )  # fmt: skip
    shipped = measure_shipped(digits_bundle, digits_bundle, (plain, away), terms)
    assert shipped.runtime == plain
    assert "slower" in shipped.why


def test_auto_for_a_gpu_tries_half_precision() -> None:
    plan = plan_trials(ModelProfile("dense", 0.9), target="latency", device="cuda", limits={})
    assert plan[1].settings["method"] == "fp16"


def test_tuning_tries_every_provider_that_is_there(monkeypatch) -> None:
    monkeypatch.setattr(
        "fairlead.optimize.hardware.candidates.available_providers", lambda: (TENSORRT, CUDA, CPU)
    )
    assert {CUDA, TENSORRT} <= set(other_providers(CPU, "onnxruntime"))


def test_a_provider_that_did_not_start_is_no_gpu(tmp_path, monkeypatch) -> None:
    """ONNX Runtime lists CUDA, finds no driver, and goes on with the CPU without an error."""
    path = zoo.save(zoo.dense(last=None), tmp_path / "model.onnx")
    start = ort.InferenceSession

    def fall_back(source, options, providers):
        return start(source, options, providers=[CPU])

    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", fall_back)
    with pytest.raises(ModelError, match=f"{CUDA} could not be started"):
        OnnxRunner(path, RuntimeSettings(execution_provider=CUDA))
    assert backend.available_providers()[0] == CUDA


@pytest.mark.skipif(CUDA in available_providers(), reason="CUDA is here")
def test_without_cuda_the_reason_and_the_way_out_are_named(digits_bundle, tmp_path) -> None:
    context = Context.open(home=tmp_path / "home")
    rows = zoo.save_rows(zoo.digits_dataset(), tmp_path / "rows.parquet")
    with pytest.raises(ConfigError, match="CUDAExecutionProvider") as caught:
        optimize_auto(
            digits_bundle.path, rows, out=tmp_path / "out", settings={"device": "cuda"},
            context=context,
        )  # fmt: skip
    assert "onnxruntime-gpu" in caught.value.hint


@pytest.mark.skipif(CUDA not in available_providers(), reason="ONNX Runtime has no CUDA here")
def test_with_cuda_the_best_version_runs_on_it(digits_bundle, tmp_path) -> None:
    context = Context.open(home=tmp_path / "home")
    rows = zoo.save_rows(zoo.digits_dataset(), tmp_path / "rows.parquet")
    outcome = optimize_auto(
        digits_bundle.path, rows, out=tmp_path / "out",
        settings={"device": "cuda", "time_limit_s": 0.5, "max_drop": 0.02}, context=context,
    )  # fmt: skip
    assert not outcome.is_refused
    assert Bundle.open(tmp_path / "out").runtime.execution_provider in {CUDA, TENSORRT, CPU}
    trials = outcome.report.details["trials"]
    assert trials["quantized"]["verdict"] in {"done", "kept", "refused"}
