import json
from typing import NamedTuple

import pytest

from fairlead.core.bundle import Bundle
from fairlead.entrypoints.cli import main
from tests.optimize import zoo


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits_bundle, outlier_bundle, forest_bundle):
    path = tmp_path_factory.mktemp("cli")
    zoo.save_rows(zoo.digits_dataset(), path / "rows.parquet")
    (path / "digits").symlink_to(digits_bundle.path)
    (path / "outlier").symlink_to(outlier_bundle.path)
    (path / "forest").symlink_to(forest_bundle.path)
    zoo.save(zoo.convolution(), path / "conv.onnx")
    (path / "broken.onnx").write_bytes(b"\x08garbage" * 9)
    return path


class Done(NamedTuple):
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def fairlead(folder, monkeypatch, capfd):
    """Run a command as the shell would, in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FAIRLEAD_HOME", str(folder / ".fairlead"))

    def run(*words: str) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main(["optimize", *words])
        said = capfd.readouterr()
        return Done(int(left.value.code or 0), said.out, said.err)

    return run


QUICK = ("--data", "rows.parquet", "--time-limit-s", "0.3")


def test_quantize_compress_and_tune_one_after_the_other(fairlead, tmp_path) -> None:
    steps = {
        "quantize": (
            "digits", str(tmp_path / "small"), ("--max-drop", "0.02", "--method", "dynamic-int8"),
        ),
        "tune": (str(tmp_path / "small"), str(tmp_path / "tuned"), ("--max-batch-size", "4")),
        "compress": ("digits", str(tmp_path / "thin"), ("--max-drop", "0.05")),
    }  # fmt: skip
    for verb, (start, out, words) in steps.items():
        done = fairlead(verb, start, *QUICK, "-o", out, "--json", *words)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["verdict"] == "done"
        assert report["files"]["bundle"] == out
    tuned = Bundle.open(tmp_path / "tuned")
    assert tuned.runtime.is_tuned
    assert [change.split()[0] for change in tuned.provenance.changes[-2:]] == [
        "dynamic-int8", "tuned:",
    ]  # fmt: skip


def test_a_refusal_is_exit_1_and_writes_nothing(fairlead, tmp_path) -> None:
    out = tmp_path / "q"
    done = fairlead("quantize", "outlier", *QUICK, "--method", "dynamic-int8", "-o", str(out))
    assert done.returncode == 1
    assert "refused" in done.stdout
    assert not out.exists()


def test_nothing_to_do_is_exit_0_and_the_same_bundle(fairlead, tmp_path, forest_bundle) -> None:
    out = tmp_path / "q"
    done = fairlead("quantize", "forest", *QUICK, "-o", str(out))
    assert done.returncode == 0
    assert Bundle.open(out).digest == forest_bundle.digest


def test_a_raw_model_is_packed_first_and_only_once(fairlead, tmp_path) -> None:
    for name in ("one", "two"):
        out = str(tmp_path / name)
        words = ("--labels", "label", "--max-drop", "0.2", "-o", out, "--json")
        done = fairlead("quantize", "conv.onnx", *QUICK, *words)
        assert done.returncode == 0, done.stderr
        assert ("packed first" in done.stderr) is (name == "one")
    assert Bundle.open(tmp_path / "one").scores.primary is not None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("quantize", "nothing"), "no model at nothing"),
        (("quantize", "broken.onnx"), "broken.onnx"),
        (("quantize", "digits", "--labels", "colour"), "colour"),
        (("quantize", "digits", "--max-drop", "7"), "max-drop"),
        (("compress", "digits", "--method", "magic"), "magic"),
        (("tune", "digits", "--service", "nobody"), "nobody"),
        (("tune", "digits", "--logged", "nobody"), "nobody"),
        (("tune", "digits", "--service", "a", "--logged", "b"), "--logged b"),
        (("tune", "digits", "--speed", "fast"), "--speed"),
    ],
)
def test_bad_input_is_exit_2_with_a_hint(fairlead, tmp_path, words, text) -> None:
    done = fairlead(*words, *QUICK, "-o", str(tmp_path / "q"))
    assert done.returncode == 2
    assert text in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
