"""Bundles: written whole, opened verified, derived without touching the parent."""

import json

import pytest

from fairlead.core.bundle import (
    Bundle,
    BundleManifest,
    Provenance,
    RuntimeSettings,
    Score,
    Scores,
    copy_bundle,
    derive_bundle,
    write_bundle,
)
from fairlead.core.errors import (
    BundleError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    WorkspaceError,
)
from fairlead.core.profile import ReferenceProfile
from fairlead.core.signature import Signature, TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(-1, 2))


def manifest(**changes):
    return BundleManifest.model_validate(
        {
            "name": "m",
            "kind": "onnx",
            "model_file": "model.onnx",
            "task": "other",
            "signature": Signature(inputs=(X,), outputs=(X,)),
            "prediction_output": "x",
            **changes,
        }
    )


def fill(folder):
    (folder / "MLmodel").write_text("flavors: {}\n")
    (folder / "model.onnx").write_bytes(b"weights")
    (folder / "model.onnx.data").write_bytes(b"more weights")


def write(target, **options):
    parts = {
        "fill": fill,
        "manifest": manifest(),
        "profile": ReferenceProfile(n_rows=1, columns=()),
        "scores": Scores(),
        "runtime": RuntimeSettings(),
        "provenance": Provenance(made_by="test", source="m", source_digest="sha256:0"),
    }
    return write_bundle(target, **{**parts, **options})


FILES = [
    "MLmodel",
    "model.onnx",
    "model.onnx.data",
    "fairlead/bundle.json",
    "fairlead/profile.json",
    "fairlead/scores.json",
    "fairlead/runtime.json",
    "fairlead/provenance.json",
]


def test_what_is_written_is_what_is_opened(tmp_path):
    written = write(tmp_path / "b")
    opened = Bundle.open(tmp_path / "b")
    assert opened == written
    assert (opened.name, opened.version) == ("m", opened.digest[7:19])
    assert opened.signature.inputs == (X,)
    assert opened.profile().n_rows == 1
    assert opened.size_bytes == len(b"weights") + len(b"more weights")


def test_the_list_of_files_is_all_there_is(tmp_path):
    write(tmp_path / "b")
    found = {p.relative_to(tmp_path / "b").as_posix() for p in (tmp_path / "b").rglob("*.*")}
    assert found | {"MLmodel"} == {*FILES, "fairlead/digests.json"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["first", "last"])
def test_one_changed_byte_is_refused(tmp_path, name, place):
    write(tmp_path / "b")
    path = tmp_path / "b" / name
    data = bytearray(path.read_bytes())
    data[0 if place == "first" else -1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises((IntegrityError, BundleError)) as found:
        Bundle.open(tmp_path / "b")
    assert found.value.hint


def test_a_changed_list_of_digests_changes_the_digest_or_is_refused(tmp_path):
    before = write(tmp_path / "b").digest
    path = tmp_path / "b" / "fairlead" / "digests.json"
    path.write_text(path.read_text() + " ")
    assert Bundle.open(tmp_path / "b").digest != before
    path.write_bytes(b"\x00" + path.read_bytes())
    with pytest.raises(BundleError):
        Bundle.open(tmp_path / "b")


@pytest.mark.parametrize("name", FILES)
def test_a_lost_file_is_refused(tmp_path, name):
    write(tmp_path / "b")
    (tmp_path / "b" / name).unlink()
    with pytest.raises(BundleError):
        Bundle.open(tmp_path / "b")


def test_an_added_file_is_refused(tmp_path):
    write(tmp_path / "b")
    (tmp_path / "b" / "extra.py").write_text("")
    with pytest.raises(IntegrityError, match="was added"):
        Bundle.open(tmp_path / "b")


def test_what_is_no_bundle_is_told(tmp_path):
    with pytest.raises(NotFoundError):
        Bundle.open(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"lacks bundle\.json"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("document", ['{"format_number": 2}', "[]", "{}"])
def test_another_format_is_told(tmp_path, document):
    write(tmp_path / "b")
    (tmp_path / "b" / "fairlead" / "bundle.json").write_text(document)
    with pytest.raises(BundleError, match="format"):
        Bundle.open(tmp_path / "b")


def test_values_that_do_not_fit_are_told(tmp_path):
    write(tmp_path / "b")
    path = tmp_path / "b" / "fairlead" / "runtime.json"
    path.write_text(json.dumps({"max_batch_size": 0}))
    with pytest.raises(BundleError, match="max_batch_size"):
        Bundle.open(tmp_path / "b", verify=False)


def test_an_existing_folder_is_kept_unless_replaced(tmp_path):
    first = write(tmp_path / "b")
    with pytest.raises(ConflictError):
        write(tmp_path / "b", manifest=manifest(name="n"))
    assert Bundle.open(tmp_path / "b").digest == first.digest
    assert write(tmp_path / "b", manifest=manifest(name="n"), replace=True).name == "n"


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def broken(folder):
        fill(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(WorkspaceError, match="No space left") as found:
        write(tmp_path / "b", fill=broken)
    assert "free some space" in found.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_derived_bundle_remembers_its_parent(tmp_path):
    parent = write(tmp_path / "a")
    child = derive_bundle(
        parent, tmp_path / "b", made_by="quantize", change="int8", model=b"small",
        runtime=RuntimeSettings(is_tuned=True), packages={"onnx": "1"},
        scores=Scores(scores=(Score(metric="accuracy", value=1, sample_size=1, ci_low=0,
                                    ci_high=1),)),
    )  # fmt: skip
    assert child.provenance.parent_digest == parent.digest
    assert (child.provenance.changes, child.provenance.made_by) == (("int8",), "quantize")
    assert child.size_bytes == len(b"small")
    assert child.runtime.is_tuned
    assert child.scores.primary.metric == "accuracy"
    assert Bundle.open(tmp_path / "a") == parent
    grandchild = derive_bundle(child, tmp_path / "c", made_by="tune", change="threads")
    assert grandchild.provenance.changes == ("int8", "threads")
    assert grandchild.model_path.read_bytes() == b"small"
    assert grandchild.scores.primary is not None


def test_a_copy_has_the_same_digest(tmp_path):
    original = write(tmp_path / "a")
    assert copy_bundle(original, tmp_path / "b").digest == original.digest


def test_only_onnx_is_rewritten(tmp_path):
    parent = write(tmp_path / "a", manifest=manifest(kind="pyfunc", model_file="."))
    with pytest.raises(BundleError, match="cannot be rewritten"):
        derive_bundle(parent, tmp_path / "b", made_by="q", change="c", model=b"x")
    assert parent.size_bytes > len(b"weights")
    assert Scores().primary is None
