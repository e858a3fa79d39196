"""`torch.compile` where torch is the runtime: measured beside eager, written, obeyed."""

import numpy as np
import pytest

from fairlead.backends.runners import open_runner
from fairlead.backends.torch_runner import TorchRunner
from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.dataset import Dataset
from fairlead.core.errors import ModelError
from fairlead.core.signature import Signature, TensorSpec
from fairlead.optimize.hardware import HardwareConfig, tune
from tests.backends.pack_models import packed

torch = pytest.importorskip("torch", reason="torch is an extra that this environment lacks")
pytest.importorskip("onnxscript", reason="onnxscript is an extra that this environment lacks")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]

COMPILED = RuntimeSettings(intra_op_threads=1, torch_compile=True)
EAGER = RuntimeSettings(intra_op_threads=1)
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 8)),),
    outputs=(TensorSpec(name="output", dtype="float32", shape=(-1, 8)),),
)
ROWS = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)


class Waves(torch.nn.Module):
    """Many small steps, which torch runs one by one and its compiler in one loop."""

    def forward(self, x):
        for step in range(1, 12):
            x = torch.sin(x * 1.01) + 1 / step
        return x


def program(module, width=8):
    free = ({0: torch.export.Dim("batch")},)
    return torch.export.export(module.eval(), (torch.zeros(3, width),), dynamic_shapes=free)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("waves")

    class Eigen(Waves):
        """With an operator that ONNX has not, so that torch stays the runtime."""

        def forward(self, x):
            square = x.unsqueeze(2) * x.unsqueeze(1) + torch.eye(8)
            return super().forward(x) + torch.linalg.eigvals(square).real * 1e-6

    torch.export.save(program(Eigen()), str(folder / "model.pt2"))
    data = Dataset({"x": ROWS}, None, None, "rows")
    found = packed(folder, folder / "model.pt2", data, trust=True).noun
    assert found.manifest.model_file == "model.pt2"
    return found, data


def test_a_compiled_program_answers_alike_for_any_batch() -> None:
    module = program(Waves()).module()
    eager = TorchRunner(module, SIGNATURE, EAGER)
    compiled = TorchRunner(module, SIGNATURE, COMPILED)
    for n_rows in (1, 2, 7, 64):
        feeds = {"x": ROWS[:n_rows]}
        np.testing.assert_allclose(
            compiled.run(feeds)["output"], eager.run(feeds)["output"], atol=1e-4
        )


def test_settings_say_how_many_threads_work() -> None:
    runner = TorchRunner(program(Waves()).module(), SIGNATURE, EAGER)
    torch.set_num_threads(2)
    runner.run({"x": ROWS[:2]})
    assert torch.get_num_threads() == 1


def test_torchscript_is_refused_with_the_reason() -> None:
    script = torch.jit.trace(torch.nn.Linear(8, 8), torch.zeros(2, 8))
    with pytest.raises(ModelError, match="TorchScript") as caught:
        TorchRunner(script, SIGNATURE, COMPILED)
    assert "optimize tune" in caught.value.hint


def test_without_a_compiler_the_reason_is_told(monkeypatch) -> None:
    from torch._inductor import cpp_builder, exc

    def absent():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", absent)
    module = program(Waves()).module()
    with pytest.raises(ModelError, match="no C\\+\\+ compiler"):
        TorchRunner(module, SIGNATURE, COMPILED)
    assert TorchRunner(module, SIGNATURE, EAGER).run({"x": ROWS[:2]})["output"].shape == (2, 8)


def test_tuning_measures_it_beside_eager_and_serving_obeys(bundle, tmp_path) -> None:
    packed_bundle, data = bundle
    config = HardwareConfig(time_limit_s=2.0, max_batch_size=4, max_threads=1)
    outcome = tune(packed_bundle, data, config, out=tmp_path / "tuned", trust=True)
    settings = next(table for table in outcome.report.tables if table.title == "Settings")
    names = [row[0] for row in settings.rows]
    assert names == ["1 thread, torch as it is", "1 thread, torch.compile"]
    chosen = next(row[0] for row in settings.rows if row[4])
    made = Bundle.open(tmp_path / "tuned")
    assert made.runtime.torch_compile == ("compile" in chosen)
    runner = open_runner(made, trust=True)
    expected = open_runner(packed_bundle, trust=True).run({"x": ROWS})
    for name, array in runner.run({"x": ROWS}).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-3)


def test_what_cannot_be_compiled_is_tuned_as_it_is(tmp_path) -> None:
    module = torch.jit.trace(torch.nn.Linear(8, 3), torch.zeros(2, 8))
    module.save(str(tmp_path / "model.pt"))
    data = Dataset({"x": ROWS}, None, None, "rows")
    source = packed(tmp_path, tmp_path / "model.pt", data, trust=True).noun
    config = HardwareConfig(time_limit_s=0.5, max_batch_size=2, max_threads=1)
    outcome = tune(source, data, config, out=tmp_path / "tuned", trust=True)
    left_out = outcome.report.details["left_out"]
    assert "TorchScript" in left_out["1 thread, torch.compile"]
    assert not outcome.noun.runtime.torch_compile
