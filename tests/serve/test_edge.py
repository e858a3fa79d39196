"""The edge export: a folder that needs ONNX Runtime and numpy, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fairlead.api.edge import export_edge
from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.errors import ConflictError, ModelError
from tests.backends.pack_models import open_context, packed
from tests.backends.python_material import texts, write_code
from tests.serve.inference_models import classifier_bundle, dtypes_bundle

ALONE = """
import runpy, sys

class OnlyTheTwo:
    allowed = {{"onnxruntime", "numpy", "run"}} | set(sys.stdlib_module_names)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed:
            raise ModuleNotFoundError("blocked: " + name, name=name)

sys.meta_path.insert(0, OnlyTheTwo())
sys.argv = ["run.py", *{words!r}]
runpy.run_path({program!r}, run_name="__main__")
"""


def alone(folder: Path, *words, stdin=""):
    """Run the exported program where importing any other package fails."""
    code = ALONE.format(words=words, program=str(folder / "run.py"))
    return subprocess.run(
        [sys.executable, "-I", "-c", code], input=stdin, capture_output=True, text=True,
        cwd=folder, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edge")
    bundle = classifier_bundle(folder / "bundle")
    export_edge(bundle.path, out=folder / "edge", as_zip=True, context=open_context(folder))
    return folder / "edge", bundle


def test_it_answers_its_own_example_with_onnxruntime_and_numpy_alone(exported):
    folder, bundle = exported
    done = alone(folder, "example.json")
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)["predictions"]
    (row,) = json.loads((folder / "example.json").read_text())["rows"]
    runner = open_runner(bundle)
    expected = runner.run({"x": np.array([list(row.values())], np.float32)})
    runner.close()
    assert answer["prediction"] == int(expected["label"][0])
    scores = [answer["scores"][label] for label in "012"]
    np.testing.assert_allclose(scores, expected["scores"][0], atol=1e-6)


def test_it_takes_tensors_from_standard_input(exported):
    folder, _ = exported
    done = alone(folder, "-", stdin='{"inputs": {"x": [[1, 2, 3, 4], [4, 3, 2, 1]]}}')
    outputs = json.loads(done.stdout)["outputs"]
    assert np.shape(outputs["scores"]) == (2, 3)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"rows": [{"a": 1}]}, "row 0 lacks `b`"),
        ({"rows": [{"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}]}, "unknown `e`"),
        ({"rows": [{"a": "x", "b": 1, "c": 1, "d": 1}]}, "not numbers"),
        ({"rows": []}, "list of objects"),
        ({"inputs": {"y": [[1]]}}, "no input `y`; the model takes x: float32[?, 4]"),
        ({"inputs": {"x": [[1, 2, 3]]}}, "has shape [1, 3]"),
        ({"inputs": {}}, "input `x` is missing"),
        ([1], "send"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_with_a_sentence(exported, document, words):
    folder, _ = exported
    done = alone(folder, "-", stdin=json.dumps(document))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_changed_files_are_found(exported, tmp_path):
    folder, _ = exported
    assert alone(folder, "--check").returncode == 0
    with zipfile.ZipFile(folder.with_suffix(".zip")) as archive:
        archive.extractall(tmp_path)
    copy = tmp_path / folder.name
    assert alone(copy, "--check").returncode == 0
    (copy / "model" / "model.onnx").write_bytes(b"other")
    done = alone(copy, "--check")
    assert (done.returncode, "model/model.onnx" in done.stderr) == (1, True)


def test_the_zip_depends_on_the_content_alone(exported, tmp_path):
    folder, bundle = exported
    out = tmp_path / "edge"
    export_edge(bundle.path, out=out, as_zip=True, context=open_context(tmp_path))
    assert out.with_suffix(".zip").read_bytes() == folder.with_suffix(".zip").read_bytes()


def test_every_dtype_survives(tmp_path):
    bundle = dtypes_bundle(tmp_path / "bundle")
    export_edge(bundle.path, out=tmp_path / "edge", context=open_context(tmp_path))
    inputs = {s.name: [["a", "b"]] if s.dtype == "string" else [[0, 1]] for s in
              bundle.signature.inputs}  # fmt: skip
    done = alone(tmp_path / "edge", "-", stdin=json.dumps({"inputs": inputs}))
    assert done.returncode == 0, done.stderr
    outputs = json.loads(done.stdout)["outputs"]
    assert outputs["string_out"] == [["a", "b"]]
    assert outputs["uint8_out"] == [[0, 1]]


def test_a_fixed_batch_is_padded(tmp_path):
    bundle = classifier_bundle(tmp_path / "bundle", batch=8)
    export_edge(bundle.path, out=tmp_path / "edge", context=open_context(tmp_path))
    rows = [{"a": i, "b": 0, "c": 1, "d": 0} for i in range(11)]
    done = alone(tmp_path / "edge", "-", stdin=json.dumps({"rows": rows}))
    assert len(json.loads(done.stdout)["predictions"]) == 11, done.stderr


def test_an_ensemble_of_onnx_models_is_exported_whole(tmp_path):
    for number, shift in enumerate((0.0, 2.0)):
        classifier_bundle(tmp_path / f"m{number}", shift=shift)
    (tmp_path / "e.toml").write_text(
        '[[steps]]\nname = "m0"\nbundle = "m0"\n[[steps]]\nname = "m1"\nbundle = "m1"\n'
        '[[steps]]\nname = "all"\ncombine = "mean"\nof = ["m0.scores", "m1.scores"]\n'
        '[[steps]]\nname = "best"\ncombine = "argmax"\nof = ["all.mean"]\n'
        '[outputs]\nlabel = "best.argmax"\nscores = "all.mean"\n'
    )
    rows = Dataset(dict(zip("abcd", np.random.default_rng(0).normal(size=(4, 30)), strict=True)))
    bundle = packed(tmp_path, tmp_path / "e.toml", rows).noun
    outcome = export_edge(bundle.path, out=tmp_path / "edge", context=open_context(tmp_path))
    assert outcome.report.measures[1].value < 1e-6
    assert alone(tmp_path / "edge", "example.json").returncode == 0


def test_a_bundle_that_needs_more_is_refused(tmp_path):
    code = write_code(tmp_path)
    bundle = packed(tmp_path, f"{code}:Later", texts()).noun
    with pytest.raises(ModelError, match="more than"):
        export_edge(bundle.path, out=tmp_path / "edge", context=open_context(tmp_path))
    assert not (tmp_path / "edge").exists()


def test_only_an_export_is_replaced_by_an_export(exported, tmp_path):
    _, bundle = exported
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(ConflictError):
        export_edge(
            bundle.path, out=tmp_path / "mine", replace=True, context=open_context(tmp_path)
        )
    assert Bundle.open(bundle.path)


def test_the_command_line_exports(exported, tmp_path, cli):
    _, bundle = exported
    done = cli("serve", "export", "edge", bundle.path, "-o", tmp_path / "out", "--json", check=0)
    assert done.json["details"]["version"] == bundle.version
    assert alone(tmp_path / "out", "example.json").returncode == 0
