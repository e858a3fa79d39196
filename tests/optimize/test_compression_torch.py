"""Compression of torch modules: cut, train, judge, export."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from fairlead.api.context import Context
from fairlead.api.packing import pack
from fairlead.api.training import quantizer
from fairlead.backends.datasets import load_dataset
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.backends.torch_material import torch_material
from fairlead.backends.torch_quantization_aware import FakeQuantized
from fairlead.backends.torch_training import TrainingPlan
from fairlead.core.bundle import Bundle
from fairlead.core.errors import DataError
from fairlead.core.ports import SilentProgress
from fairlead.optimize import compression
from fairlead.optimize.compression import CompressionConfig
from fairlead.optimize.quantization import QuantizationConfig
from fairlead.optimize.quantization.methods.quantization_aware import train_quantized

torch = pytest.importorskip("torch", reason="torch is an extra that this environment lacks")
pytest.importorskip("onnxscript", reason="onnxscript is an extra that this environment lacks")
material = pytest.importorskip("tests.optimize.torch_material")

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = "tests.optimize.torch_material"


@pytest.fixture(scope="module")
def held_back(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.npz"
    np.savez(path, **material.held_back())
    return path


@pytest.fixture(scope="module")
def packed(held_back, tmp_path_factory):
    """Pack a module once, however many tests compress it."""

    @functools.cache
    def make(factory: str) -> Bundle:
        context = Context.open(home=tmp_path_factory.mktemp("home"))
        return pack(
            f"{NAMES}:{factory}", data=str(held_back), labels="label",
            out=tmp_path_factory.mktemp("bundle") / "b", context=context,
        ).noun  # fmt: skip

    return make


@pytest.fixture
def shrink(held_back, packed, tmp_path):
    """Compress a module as the api does, without packing it again."""

    def run(method: str, factory: str = "dense", *, student: str | None = None,
            loss: str | None = None, train: str = "loader", **settings):  # fmt: skip
        chosen = {"method": method, "max_drop": 0.1, "epochs": 6, "stages": 1,
                  "time_limit_s": 0.2, **settings}  # fmt: skip
        config, bundle = CompressionConfig.parse(chosen), packed(factory)
        training = torch_material(
            bundle, model_factory=f"{NAMES}:{factory}", train_data=f"{NAMES}:{train}",
            student=student and f"{NAMES}:{student}", loss=loss and f"{NAMES}:{loss}",
        )  # fmt: skip
        rows = load_dataset(held_back, labels="label")
        return compression.compress(
            bundle, rows, config, out=tmp_path / "o", training=training,
            quantize=quantizer(config, SilentProgress()),
        )  # fmt: skip

    return run


def measured(outcome, name: str):
    return next(item for item in outcome.report.measures if item.name == name)


def test_channels_go_and_training_wins_the_quality_back(shrink) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is an extra not installed here")
    outcome = shrink("structured-pruning")
    assert outcome.report.verdict == "done"
    parameters = measured(outcome, "parameters")
    assert parameters.value < 0.4 * parameters.baseline
    bundle = outcome.noun
    assert bundle.size_bytes < 0.5 * parameters.baseline * 4
    assert bundle.comparison() is not None
    runner = OnnxRunner(bundle.model_path)
    assert list(runner.signature.outputs) == list(bundle.signature.outputs)
    runner.close()


def test_an_unprunable_module_is_kept_with_the_reason(shrink, tmp_path) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is an extra not installed here")
    outcome = shrink("structured-pruning", "tied")
    assert outcome.report.verdict == "kept"
    assert "no channel" in outcome.report.summary
    assert Bundle.open(tmp_path / "o").manifest.name == "tied"


def test_a_budget_of_nothing_is_never_broken(shrink) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is an extra not installed here")
    outcome = shrink("structured-pruning", max_drop=0, epochs=1, max_ratio=0.97)
    assert outcome.report.verdict == "refused"


def test_a_given_student_learns_from_the_teacher(shrink) -> None:
    outcome = shrink("distillation", student="student", epochs=60, learning_rate=0.01,
                     feature_weight=0.1)  # fmt: skip
    assert outcome.report.verdict == "done"
    assert measured(outcome, "parameters").value < 1000
    assert "student that was given" in outcome.report.details["change"]


def test_zeros_are_kept_and_nobody_claims_speed(shrink) -> None:
    outcome = shrink("sparsity", epochs=3)
    assert outcome.report.verdict == "done"
    assert any("do not make dense CPU kernels faster" in f.text for f in outcome.report.findings)
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(outcome.noun.model_path))
    matrices = [numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) == 2]
    shares = [float((m == 0).mean()) for m in matrices]
    assert min(shares) == pytest.approx(0.5, abs=0.02)


def test_blocks_of_an_encoder_are_left_out(shrink) -> None:
    outcome = shrink("layer-dropping", "encoder", epochs=2, max_ratio=0.5, max_drop=0.3)
    assert outcome.report.verdict == "done"
    assert "blocks left out" in outcome.report.details["change"]
    assert measured(outcome, "parameters").value < 0.9 * measured(outcome, "parameters").baseline


def test_heads_of_an_encoder_are_left_out(shrink) -> None:
    outcome = shrink("head-dropping", "encoder", epochs=2, max_drop=0.3, goal="size")
    assert "heads left out" in outcome.report.details.get("change", ""), outcome.report
    assert measured(outcome, "parameters").value < measured(outcome, "parameters").baseline


def test_distil_prune_and_quantize_share_one_budget(shrink) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is an extra not installed here")
    outcome = shrink("pipeline", max_ratio=0.5)
    assert outcome.report.verdict == "done"
    assert outcome.report.details["budget"]["value"] <= 0.1


def test_a_lost_loss_is_survived(shrink) -> None:
    outcome = shrink("sparsity", loss="nan_loss", distil_weight=0.5, epochs=8)
    assert any("given up" in f.text for f in outcome.report.findings) or outcome.is_refused


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        ({"train": "no_batches"}, DataError, "no batch"),
        ({"train": "an_iterator"}, DataError, "read once only"),
        ({"metric": f"{NAMES}:nan_metric"}, DataError, "gives nan"),
    ],
)
def test_bad_material_is_a_clear_error(shrink, words, error, text) -> None:
    with pytest.raises(error, match=text):
        shrink("sparsity", **words)


def test_training_goes_on_after_kill_9(held_back, packed, tmp_path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        from pathlib import Path
        from fairlead.backends.datasets import load_dataset
        from fairlead.backends.torch_material import torch_material
        from fairlead.core.bundle import Bundle
        from fairlead.optimize.compression import CompressionConfig, compress

        class Says:
            def begin(self, title, total=None): print("begin", title, flush=True)
            def advance(self, units=1): print("advance", units, flush=True)
            def note(self, text): pass

        bundle = Bundle.open({str(packed("dense").path)!r})
        training = torch_material(bundle, model_factory="{NAMES}:dense",
                                  train_data="{NAMES}:loader",
                                  checkpoints=Path({str(tmp_path / "home")!r}))
        config = CompressionConfig(method="sparsity", epochs=40, patience=40, max_drop=.2,
                                   time_limit_s=.2)
        done = compress(bundle, load_dataset({str(held_back)!r}, labels="label"), config,
                        out=Path({str(tmp_path / "o")!r}), training=training, progress=Says())
        print("verdict", done.report.verdict)
        """)
    )
    command = [sys.executable, "-W", "ignore", str(script)]
    where = {"cwd": str(Path(__file__).parents[2]), "env": {**os.environ, "PYTHONPATH": "."}}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **where)
    epochs, is_training = 0, False
    for line in first.stdout:
        is_training |= line.startswith("begin train")
        epochs += is_training and line.startswith("advance 1")
        if epochs == 3:
            first.send_signal(signal.SIGKILL)
            break
    first.wait()
    saved = list((tmp_path / "home").rglob("sparsity-1.pt"))
    assert len(saved) == 1
    second = subprocess.run(command, capture_output=True, text=True, check=True, **where)
    resumed = second.stdout.split("begin train")[1].splitlines()[1]
    assert int(resumed.split()[1]) >= 2
    assert "verdict done" in second.stdout


def test_a_module_learns_with_the_rounding_that_it_will_have(held_back, packed, tmp_path) -> None:
    bundle = packed("dense")
    training = torch_material(bundle, model_factory=f"{NAMES}:dense", train_data=f"{NAMES}:loader")
    before = {k: v.clone() for k, v in training.module.state_dict().items()}
    outcome = train_quantized(
        bundle, load_dataset(held_back, labels="label"),
        QuantizationConfig(max_drop=0.05, goal="size", time_limit_s=0.2), out=tmp_path / "o",
        training=training, plan=TrainingPlan(epochs=3, patience=3, learning_rate=1e-3),
    )  # fmt: skip
    assert outcome.report.verdict == "done", outcome.report.summary
    assert outcome.noun.size_bytes < 0.5 * bundle.size_bytes
    assert len(outcome.report.details["layers"]) == 3
    after = training.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_trained_is_what_the_quantized_graph_computes() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    rows = torch.randn(50, 6)
    exact = net(rows).detach()
    wrapped = FakeQuantized.wrap(net.train())
    rounded = net(rows)
    rounded.sum().backward()
    assert net[0].weight.grad is not None
    ranges = wrapped.release()
    assert set(ranges) == {"0.weight", "2.weight"}
    assert 0 < (rounded - exact).abs().max() < 0.1
    assert torch.equal(net(rows), exact)
