"""torch modules on their way into a bundle."""

import numpy as np
import pytest

from fairlead.backends.runners import open_runner
from fairlead.core.dataset import Dataset
from fairlead.core.errors import ModelError, UntrustedError
from tests.backends.pack_models import IRIS_NAMES, iris, iris_data, packed

torch = pytest.importorskip("torch", reason="torch is an extra that this environment lacks")
pytest.importorskip("onnxscript", reason="onnxscript is an extra that this environment lacks")

pytestmark = pytest.mark.filterwarnings("ignore")


def layers(n_outputs=3):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, n_outputs)
    )


def module_file(folder, monkeypatch, body):
    name = f"torch_models_{abs(hash(body)) % 10**8}"
    (folder / f"{name}.py").write_text("import torch\n" + body)
    monkeypatch.chdir(folder)
    return name


def test_a_module_by_import_string_becomes_onnx_with_a_free_batch(tmp_path, monkeypatch):
    body = (
        "from torch.nn import Dropout, Linear, ReLU, Sequential\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return Sequential(Linear(4, 8), Dropout(0.5), ReLU(), Linear(8, 3))\n"
    )
    name = module_file(tmp_path, monkeypatch, body)
    outcome = packed(tmp_path, f"{name}:make", iris_data())
    bundle = outcome.noun
    assert (bundle.manifest.task, bundle.manifest.feature_columns) == (
        "classification",
        IRIS_NAMES,
    )
    runner = open_runner(bundle)
    for rows in (1, 2, 7):
        found = next(iter(runner.run({"input": iris()[0][:rows]}).values()))
        assert found.shape == (rows, 3)
    assert any(item.metric == "conversion_max_difference" for item in outcome.evidence)


def test_a_class_is_made_and_inputs_named_like_columns_take_them(tmp_path, monkeypatch):
    body = (
        "class Net(torch.nn.Module):\n"
        "    def forward(self, petal_length, petal_width):\n"
        "        return petal_length * 2 + petal_width\n"
    )
    name = module_file(tmp_path, monkeypatch, body)
    labels = iris()[0][:, 0].astype(float)
    bundle = packed(tmp_path, f"{name}:Net", iris_data(labels=labels)).noun
    assert [spec.name for spec in bundle.signature.inputs] == ["petal_length", "petal_width"]
    assert bundle.manifest.task == "regression"


def test_an_exported_program_needs_trust(tmp_path):
    path = tmp_path / "model.pt2"
    shapes = {"input": {0: torch.export.Dim("batch")}}
    program = torch.export.export(
        layers().eval(), (torch.zeros(2, 4),), dynamic_shapes=tuple(shapes.values())
    )
    torch.export.save(program, str(path))
    with pytest.raises(UntrustedError):
        packed(tmp_path, path, iris_data())
    bundle = packed(tmp_path, path, iris_data(), trust=True).noun
    assert bundle.signature.inputs[0].shape == (-1, 4)


def test_an_exported_program_with_a_fixed_batch_is_freed(tmp_path):
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(layers().eval(), (torch.zeros(1, 4),)), str(path))
    bundle = packed(tmp_path, path, iris_data(), trust=True).noun
    assert bundle.signature.inputs[0].shape[0] == -1


def test_images_keep_their_shape(tmp_path, monkeypatch):
    body = (
        "from torch.nn import Conv2d, Flatten, Linear, Sequential\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return Sequential(Conv2d(1, 4, 3), Flatten(), Linear(144, 10))\n"
    )
    name = module_file(tmp_path, monkeypatch, body)
    images = np.random.default_rng(0).normal(size=(20, 1, 8, 8)).astype(np.float32)
    data = Dataset({"image": images}, np.arange(20) % 10, "label", "images")
    bundle = packed(tmp_path, f"{name}:make", data).noun
    assert bundle.signature.inputs[0].shape == (-1, 1, 8, 8)


def test_a_file_that_is_no_export_is_an_error(tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"garbage" * 50)
    with pytest.raises(ModelError, match="not a torch export"):
        packed(tmp_path, path, iris_data(), trust=True)


def test_a_module_that_takes_other_shapes_is_an_error(tmp_path, monkeypatch):
    name = module_file(tmp_path, monkeypatch, "def make():\n    return torch.nn.Linear(9, 2)\n")
    with pytest.raises(ModelError, match="cannot be exported"):
        packed(tmp_path, f"{name}:make", iris_data())


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("script")
    module = layers().eval()
    torch.jit.trace(module, torch.zeros(2, 4)).save(str(folder / "model.pt"))
    return folder / "model.pt", module


def test_torchscript_is_run_by_torch_and_needs_trust(tmp_path, scripted):
    path, module = scripted
    with pytest.raises(UntrustedError, match="run code"):
        packed(tmp_path, path, iris_data())
    bundle = packed(tmp_path, path, iris_data(), trust=True).noun
    assert (bundle.manifest.kind, bundle.manifest.model_file) == ("pyfunc", "model.pt")
    with pytest.raises(UntrustedError):
        open_runner(bundle)
    runner = open_runner(bundle, trust=True)
    rows = iris()[0][:5].astype(np.float32)
    expected = module(torch.from_numpy(rows)).detach().numpy()
    np.testing.assert_allclose(runner.run({"input": rows})["output"], expected, atol=1e-6)
    runner.close()
    lines = (bundle.path / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch==") and "+" not in line for line in lines)


def test_an_export_that_onnx_cannot_express_is_run_by_torch(tmp_path):
    class Sorted(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x.unsqueeze(2) * x.unsqueeze(1) + torch.eye(4)).real

    example = (torch.rand(3, 4),)
    free = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Sorted().eval(), example, dynamic_shapes=free)
    torch.export.save(program, str(tmp_path / "model.pt2"))
    outcome = packed(tmp_path, tmp_path / "model.pt2", iris_data(), trust=True)
    bundle = outcome.noun
    assert (bundle.manifest.kind, bundle.manifest.model_file) == ("pyfunc", "model.pt2")
    assert any("torch runs it" in finding.text.lower() or "Torch runs it" in finding.text
               for finding in outcome.report.findings)  # fmt: skip
    runner = open_runner(bundle, trust=True)
    rows = iris()[0][:3].astype(np.float32)
    found = runner.run({bundle.signature.inputs[0].name: rows})["output"]
    expected = Sorted()(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=1e-3)
    runner.close()


def test_a_plain_checkpoint_stays_refused(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="pickle"):
        packed(tmp_path, tmp_path / "weights.pt", iris_data(), trust=True)
