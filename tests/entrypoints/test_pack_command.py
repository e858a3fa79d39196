"""`fairlead pack`: what it prints, how it leaves, and that nothing is half-written."""

import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from fairlead.backends.datasets import save_dataset
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.entrypoints.cli import main
from tests.backends.pack_models import iris, iris_data, iris_onnx


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model and rows, which is the working directory."""
    (tmp_path / "model.onnx").write_bytes(iris_onnx())
    save_dataset(iris_data(), tmp_path / "rows.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *words):
    with pytest.raises(SystemExit) as leaving:
        main(["pack", *words])
    captured = capsys.readouterr()
    return int(leaving.value.code or 0), captured.out, captured.err


def refused(capsys, place, *words):
    """Run a command that must end with exit code 2, a hint and no bundle; return what it said."""
    before = sorted(place.iterdir())
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "\n\nhint: " in err
    assert "Traceback" not in err
    assert sorted(place.iterdir()) == before
    return err


ROWS = ("--data", "rows.parquet", "--labels", "label", "-o", "bundle")


def test_a_model_becomes_a_bundle(capsys, place):
    code, out, err = run(capsys, "model.onnx", *ROWS, "--name", "iris")
    assert code == 0, err
    assert "accuracy" in out
    assert Bundle.open(place / "bundle").name == "iris"


def test_json_is_one_document(capsys, place):
    code, out, _err = run(capsys, "model.onnx", *ROWS, "--json")
    document = json.loads(out)
    assert (code, document["skill"], document["details"]["task"]) == (0, "pack", "classification")
    assert document["details"]["digest"] == Bundle.open(place / "bundle").digest


@pytest.mark.parametrize("name", ["model.onnx", "model.skops", "model.ubj", "model.txt"])
def test_garbage_is_refused(capsys, place, name):
    (place / name).write_bytes(b"tree" + np.random.default_rng(0).bytes(3000))
    refused(capsys, place, name, *ROWS)


@pytest.mark.parametrize("name", ["model.pkl", "model.joblib", "model.pt"])
def test_pickles_are_refused(capsys, place, name):
    (place / name).write_bytes(b"\x80\x04K\x01.")
    assert "pickle" in refused(capsys, place, name, *ROWS)


def test_an_empty_model_is_refused(capsys, place):
    (place / "model.onnx").write_bytes(b"")
    assert "is empty" in refused(capsys, place, "model.onnx", *ROWS)


def test_a_missing_model_is_refused(capsys, place):
    assert "there is no model" in refused(capsys, place, "nothing.onnx", *ROWS)


def test_a_wrong_number_of_features_is_refused(capsys, place):
    columns = {**iris_data().columns, "weight": np.ones(150)}
    save_dataset(Dataset(columns, iris()[1], "label"), place / "rows.parquet")
    said = refused(capsys, place, "model.onnx", *ROWS)
    assert "5 values per row" in said
    assert "takes 4" in said
    assert "--features" in said


def test_naming_the_features_mends_it(capsys, place):
    columns = {"weight": np.ones(150), **iris_data().columns}
    save_dataset(Dataset(columns, iris()[1], "label"), place / "rows.parquet")
    names = ",".join(iris_data().columns)
    assert run(capsys, "model.onnx", *ROWS, "--features", names)[0] == 0


def test_a_missing_label_column_is_refused(capsys, place):
    words = ("--data", "rows.parquet", "--labels", "target", "-o", "bundle")
    assert "no column `target`" in refused(capsys, place, "model.onnx", *words)


def test_missing_labels_are_refused(capsys, place):
    labels = iris()[1].astype(float)
    labels[3] = np.nan
    save_dataset(Dataset(iris_data().columns, labels, "label"), place / "rows.parquet")
    assert "missing in 1 of 150 rows" in refused(capsys, place, "model.onnx", *ROWS)


def test_empty_and_unreadable_data_are_refused(capsys, place):
    for content in (b"", b"PAR1 garbage"):
        (place / "rows.parquet").write_bytes(content)
        refused(capsys, place, "model.onnx", *ROWS)


def test_an_unknown_option_is_refused(capsys, place):
    refused(capsys, place, "model.onnx", *ROWS, "--colour", "blue")


def test_a_missing_extra_is_an_install_line(capsys, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", None)
    (place / "model.ubj").write_bytes(b"{L garbage")
    said = refused(capsys, place, "model.ubj", *ROWS)
    assert "fairlead[boosting]" in said


def test_an_existing_target_is_kept_unless_replaced(capsys, place):
    (place / "bundle").mkdir()
    (place / "bundle" / "mine.txt").write_text("precious")
    assert "already exists" in refused(capsys, place, "model.onnx", *ROWS)
    assert "holds no" in refused(capsys, place, "model.onnx", *ROWS, "--replace")
    assert (place / "bundle" / "mine.txt").read_text() == "precious"
    (place / "bundle" / "mine.txt").unlink()
    assert run(capsys, "model.onnx", *ROWS)[0] == 0
    assert run(capsys, "model.onnx", *ROWS, "--replace")[0] == 0


def test_a_target_that_cannot_be_written_is_refused(capsys, place):
    (place / "file").write_text("")
    words = ("--data", "rows.parquet", "--labels", "label", "-o", "file/bundle")
    assert "cannot write" in refused(capsys, place, "model.onnx", *words)


def test_a_target_on_a_read_only_file_system_is_refused(capsys, place):
    words = ("--data", "rows.parquet", "--labels", "label", "-o", "/proc/fairlead/bundle")
    assert "cannot write the bundle" in refused(capsys, place, "model.onnx", *words)


def test_a_full_disk_leaves_nothing_half_written(place):
    """A limit on file sizes makes writing fail in the middle, as a full disk does."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))

    save_dataset(iris_data(), place / "rows.parquet")
    columns = {f"c{i}": np.ones(3) for i in range(600)}
    save_dataset(Dataset(columns, np.arange(3), "label"), place / "wide.parquet")
    from tests.backends.pack_models import net

    (place / "wide.onnx").write_bytes(net(n_inputs=600).SerializeToString())
    words = ["wide.onnx", "--data", "wide.parquet", "--labels", "label", "-o", "out/bundle"]
    (place / "out").mkdir()
    environment = {**os.environ, "FAIRLEAD_DATABASE_URL": "sqlite:///:memory:"}
    done = subprocess.run(
        [sys.executable, "-m", "fairlead", "pack", *words],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 2, done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert list((place / "out").iterdir()) == []
