"""What was handed over: its format, its digest, and what is refused before anything is loaded."""

import pickle
import zipfile

import pytest

from fairlead.core.artifact import Artifact
from fairlead.core.errors import ModelError, NotFoundError


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("m.onnx", b"\x08\x07", "onnx"),
        ("m.skops", b"PK", "skops"),
        ("m.ubj", b"{", "xgboost"),
        ("m.XGB", b"{", "xgboost"),
        ("m.json", b'{"learner": {}}', "xgboost"),
        ("m.txt", b"tree\nversion=v4", "lightgbm"),
        ("m.lgb", b"tree", "lightgbm"),
        ("m.pt2", b"PK", "torch-export"),
    ],
)
def test_files_are_told_apart(tmp_path, name, content, kind):
    path = tmp_path / name
    path.write_bytes(content)
    found = Artifact.from_reference(str(path))
    assert (found.format, found.path, found.size_bytes) == (kind, str(path), len(content))


def test_the_digest_follows_the_bytes(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"1")
    first = Artifact.from_reference(str(path)).digest
    path.write_bytes(b"2")
    assert Artifact.from_reference(str(path)).digest != first


@pytest.mark.parametrize("name", ["m.pkl", "m.pickle", "m.joblib", "m.dill", "m.pt", "m.bin", "m"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelError, match="is a pickle") as found:
        Artifact.from_reference(str(tmp_path / name))
    assert "skops" in found.value.hint


def test_a_pickle_in_a_torch_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.net", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(1))
    with pytest.raises(ModelError, match="is a pickle"):
        Artifact.from_reference(str(tmp_path / "model.net"))
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("readme", "no model")
    with pytest.raises(ModelError, match="not known"):
        Artifact.from_reference(str(tmp_path / "model.zip"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("m.json", b'{"a": 1}'), ("m.txt", b"hello"), ("m.h5", b"\x89HDF"), ("m", b"x")],
)
def test_other_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match="not known"):
        Artifact.from_reference(str(tmp_path / name))


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="is empty"):
        Artifact.from_reference(str(tmp_path / "m.onnx"))


def test_directories_are_told_apart(tmp_path):
    with pytest.raises(ModelError, match="without an MLmodel file"):
        Artifact.from_reference(str(tmp_path))
    (tmp_path / "MLmodel").write_text("flavors: {}")
    assert Artifact.from_reference(str(tmp_path)).format == "mlflow"
    (tmp_path / "fairlead").mkdir()
    (tmp_path / "fairlead" / "bundle.json").write_text("{}")
    found = Artifact.from_reference(str(tmp_path))
    assert (found.format, found.size_bytes) == ("bundle", 13)


def test_import_strings_are_told_from_lost_files():
    assert Artifact.from_reference("package.module:make").format == "import-string"
    for lost in ("nothing.onnx", "deep/path:x", "no-such-thing"):
        with pytest.raises(NotFoundError, match="there is no model"):
            Artifact.from_reference(lost)
