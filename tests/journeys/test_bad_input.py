"""Bad input through the real command line: an error with a hint, the right exit code, nothing left.

Most commands run in this process, because what is tested is what they say and leave; what happens
to streams and processes is tested in processes of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fairlead.core.files import digest_tree
from fairlead.entrypoints.cli.app import main

pytestmark = [pytest.mark.journey, pytest.mark.timeout(120)]

PROBLEM = "I trained a model, now I need to put it in production"
DEEP = "[" * 5000 + "]" * 5000
LONG = "z" * 5000


@pytest.fixture(scope="module")
def broken(bundles, tmp_path_factory):
    """A folder with good material beside everything that can be wrong with it."""
    folder = tmp_path_factory.mktemp("broken")
    noise = np.random.default_rng(0).bytes(3000)
    for suffix in ("onnx", "skops", "ubj", "pkl", "parquet", "csv", "jsonl", "npz", "toml"):
        (folder / f"noise.{suffix}").write_bytes(noise)
        (folder / f"empty.{suffix}").touch()
        (folder / f"folder.{suffix}").mkdir()
    for name in ("model.onnx", "holdout.parquet"):
        whole = (bundles / name).read_bytes()
        shutil.copy(bundles / name, folder / name)
        (folder / f"cut.{name.rpartition('.')[2]}").write_bytes(whole[: len(whole) // 2])
    _write_rows(folder, pq.read_table(bundles / "holdout.parquet"))
    _write_models(folder)
    shutil.copytree(bundles / "baseline", folder / "bundle")
    (folder / "code.py").write_text(
        "import sys\nx = 1\ndef boom():\n    raise ValueError('one\\ntwo')\n"
        "def leave():\n    sys.exit(5)\n"
    )
    return folder


def _write_rows(folder, table):
    n = table.num_rows
    place = table.schema.get_field_index("label")

    def save(name, changed):
        pq.write_table(changed, folder / f"{name}.parquet")

    save("no-rows", table.slice(0, 0))
    save("no-columns", pa.table({}))
    save("missing-column", table.drop(["pixel_5"]))
    save("nan-labels", table.set_column(place, "label", pa.array([float("nan")] * n)))
    save("alien-labels", table.set_column(place, "label", pa.array(["x"] * n)))
    save("text-column", table.set_column(0, table.column_names[0], pa.array(["abc"] * n)))
    header = ",".join(table.column_names)
    (folder / "ragged.csv").write_text(f"{header}\n1,2,3\n")
    (folder / "header-only.csv").write_text(f"{header}\n")
    (folder / "latin.csv").write_bytes("é,b\n1,2\n".encode("latin1"))
    (folder / "broken.jsonl").write_text('{"pixel_0": 1}\n{"pixel_0": \n')
    (folder / "deep.jsonl").write_text('{"a":' * 50_000 + "1" + "}" * 50_000 + "\n")
    np.savez(folder / "one-value.npz", pixels=np.float32(3))
    np.savez(folder / "objects.npz", pixels=np.array([{}, 1], object))


def _write_models(folder):
    from onnx import TensorProto, helper, save

    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def model(name, nodes, inputs, opset=17):
        graph = helper.make_graph(nodes, "g", inputs, [value("y", [1])])
        opsets = [helper.make_opsetid("", opset)]
        save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / name)

    constant = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    identity = helper.make_node("Identity", ["x"], ["y"])
    model("no-inputs.onnx", [helper.make_node("Constant", [], ["y"], value=constant)], [])
    model("from-the-future.onnx", [identity], [value("x", ["n"])], opset=99)
    model("unknown-node.onnx", [helper.make_node("Nope", ["x"], ["y"])], [value("x", ["n"])])


@pytest.fixture
def fail(broken, monkeypatch, capsys):
    """Run a command that must fail; returns what it said, and checks that it left nothing."""
    monkeypatch.chdir(broken)

    def run(*words, code=2):
        before = sorted(os.walk("."))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(list(words))
        said = capsys.readouterr()
        assert left.value.code == code, said.err
        assert said.out == ""
        assert said.err.count("error: ") >= 1
        assert "hint: " in said.err
        assert "Traceback" not in said.err
        assert "error: unexpected" not in said.err
        assert len(said.err) < 3000
        assert sorted(os.walk(".")) == before
        return said.err

    return run


MODELS = (
    *(f"{kind}.{suffix}" for kind in ("noise", "empty", "folder") for suffix in
      ("onnx", "skops", "ubj", "pkl")),
    "cut.onnx", "no-inputs.onnx", "from-the-future.onnx", "unknown-node.onnx", "nowhere.onnx", "",
    "holdout.parquet/x.onnx", "~nobody/x.onnx", LONG, "code:missing", "code:x", "code:x.y.z",
    "code:boom", "code:leave", "code:", ":", "nothing:x",
)  # fmt: skip
ROWS = (
    *(f"{kind}.{suffix}" for kind in ("noise", "empty", "folder") for suffix in
      ("parquet", "csv", "jsonl", "npz")),
    "cut.parquet", "no-rows.parquet", "no-columns.parquet", "missing-column.parquet",
    "nan-labels.parquet", "alien-labels.parquet", "text-column.parquet", "ragged.csv",
    "header-only.csv", "latin.csv", "broken.jsonl", "deep.jsonl", "one-value.npz", "objects.npz",
    "nowhere.csv", "", LONG, "/dev/zero", "sklearn:nothing", "code:x", "code:boom", "code:leave",
)  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_pack_refuses_the_model(fail, model):
    fail("pack", model, "--data", "holdout.parquet", "--labels", "label", "-o", "out")


@pytest.mark.parametrize("rows", ROWS)
def test_pack_refuses_the_rows(fail, rows):
    fail("pack", "model.onnx", "--data", rows, "--labels", "label", "-o", "out")


@pytest.mark.parametrize("rows", ["no-rows.parquet", "deep.jsonl"])
@pytest.mark.parametrize("words", [
    ("optimize", "quantize", "bundle", "-o", "out", "--data"),
    ("optimize", "tune", "bundle", "-o", "out", "--data"),
    ("serve", "batch", "bundle", "-o", "out.parquet"),
    ("serve", "scale", "plan", "bundle", "--data"),
    ("observe", "drift", "bundle", "--data"),
    ("observe", "debug", "slices", "bundle", "--data"),
])  # fmt: skip
def test_every_reader_of_rows_refuses_them(fail, words, rows):
    fail(*words, rows)


@pytest.mark.parametrize("words", [
    ("optimize", "quantize", "bundle", "--data", "holdout.parquet", "-o", "model.onnx"),
    ("optimize", "quantize", "bundle", "--data", "holdout.parquet", "-o", "model.onnx/out"),
    ("optimize", "quantize", "bundle", "--data", "holdout.parquet", "-o", "out", "--max-drop", "x"),
    ("optimize", "quantize", "bundle", "--data", "holdout.parquet", "-o", "out", "--seed", "-1"),
    ("serve", "start", "bundle", "--name", "../up"),
    ("serve", "start", "bundle", "--set", "nothing=1"),
    ("serve", "start", "bundle", "--http-port", "80000"),
    ("serve", "start", "bundle", "--host", "203.0.113.7"),
    ("serve", "start", "model.onnx"),
    ("serve", "stop", "nothing"),
    ("observe", "alerts", "--service", "x", "-o", "."),
    ("observe", "slo", "--service", "nothing"),
    ("mlops", "track", "show", "nothing"),
    ("mlops", "track", "run", "--", "no-such-program"),
    ("mlops", "registry", "register", "bundle", "--name", "a/b"),
    ("mlops", "registry", "resolve", "a:-1"),
    ("mlops", "pipeline", "show", "nothing"),
    ("guides", "show", "nothing"),
    ("demo", "prepare", "model.onnx"),
    ("ask", " "), ("ask", "\x00"), ("ask", PROBLEM, "--answer", LONG * 20),
    ("ask", "word " * 200_000),
    ("nothing",), ("pack", "--nothing"),
])  # fmt: skip
def test_other_words_that_cannot_be_followed(fail, words):
    fail(*words)


def test_a_message_cannot_steer_the_terminal(fail):
    assert "\x1b" not in fail("pack", "a\x1b[31mb", "--data", "holdout.parquet", "-o", "out")


# Plans

PLANS = {
    "no-steps": lambda text: text.partition("[[steps]]")[0] + "steps = []\n",
    "unknown-key": lambda text: f"nothing = 1\n{text}",
    "twice": lambda text: text + "[[steps]]" + text.split("[[steps]]")[1],
    "unknown-use": lambda text: text.replace('uses = "pack"', 'uses = "nothing"'),
    "no-pack": lambda text: text.replace('uses = "pack"', 'uses = "quantization-for-inference"'),
    "wrong-type": lambda text: text.replace("max_drop = 0.01", 'max_drop = "much"'),
    "long-id": lambda text: text.replace('id = "quantize"', f'id = "{"q" * 300}"'),
    "next-format": lambda text: text.replace("format_number = 1", "format_number = 2"),
    "no-toml": lambda text: text + "\n[[[",
    "deep": lambda text: text + f"\nnothing = {DEEP}",
    "no-text": lambda text: text + "\x00",
}


@pytest.fixture(scope="module")
def plan_text(broken):
    from fairlead.api import plan
    from fairlead.api.plan_file import plan_to_toml

    model, rows = str(broken / "model.onnx"), str(broken / "holdout.parquet")
    text = "Quantize my model, deploy it and monitor it"
    return plan_to_toml(plan(text, model=model, data=rows, labels="label"))


@pytest.mark.parametrize("name", [*PLANS, "noise", "empty", "folder", "nowhere"])
def test_a_plan_that_cannot_be_run(fail, broken, plan_text, name):
    path = broken / f"{name}.toml"
    if name in PLANS:
        changed = PLANS[name](plan_text)
        assert changed != plan_text
        path.write_text(changed)
    fail("run", path.name)


# Bundles


@pytest.mark.parametrize("place", ["model.onnx", "MLmodel", "fairlead/bundle.json",
                                   "fairlead/profile.json", "fairlead/digests.json"])  # fmt: skip
@pytest.mark.parametrize("harm", ["changed", "emptied", "removed"])
def test_a_harmed_bundle_is_refused(fail, broken, place, harm):
    folder = broken / "harmed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(broken / "bundle", folder)
    file = folder / place
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(b"" if harm == "emptied" else data)
    if harm == "removed":
        file.unlink()
    fail("optimize", "quantize", "harmed", "--data", "holdout.parquet", "-o", "out")


def test_a_bundle_of_a_later_format_is_refused(fail, broken):
    folder = broken / "later"
    shutil.copytree(broken / "bundle", folder)
    manifest = folder / "fairlead" / "bundle.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_number": 2}))
    digests = folder / "fairlead" / "digests.json"
    known = json.loads(digests.read_text())
    fresh = digest_tree(folder)
    old = known.get("files", known)
    old.update({name: fresh[name] for name in old if name in fresh})
    digests.write_text(json.dumps(known))
    assert "format 2" in fail("serve", "start", "later")


# Workspace, settings, disk


@pytest.mark.parametrize("words", [
    ("pack", "model.onnx", "--data", "holdout.parquet", "--labels", "label", "-o", "out"),
    ("optimize", "quantize", "bundle", "--data", "holdout.parquet", "-o", "out"),
    ("serve", "batch", "bundle", "holdout.parquet", "-o", "out.parquet"),
    ("serve", "start", "bundle", "--detach"),
    ("observe", "drift", "bundle", "--data", "holdout.parquet", "--textfile", "drift.prom"),
    ("mlops", "registry", "register", "bundle", "--name", "m"),
])  # fmt: skip
@pytest.mark.parametrize("state", ["file", "noise"])
def test_a_workspace_that_cannot_be_used(fail, tmp_path, monkeypatch, words, state):
    home = tmp_path / "home"
    if state == "file":
        home.touch()
    else:
        home.mkdir()
        (home / "state.db").write_bytes(bytes(range(256)) * 20)
    monkeypatch.setenv("FAIRLEAD_HOME", str(home))
    fail(*words)


@pytest.mark.parametrize(("name", "value"), [
    ("FAIRLEAD_CPU_LIMIT", "many"), ("FAIRLEAD_RECORD", "perhaps"),
    ("FAIRLEAD_DATABASE_URL", "nothing"), ("FAIRLEAD_DATABASE_URL", "mysql://x/y"),
    ("FAIRLEAD_HOME", LONG),
])  # fmt: skip
def test_settings_that_make_no_sense(fail, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    fail("mlops", "track", "list")


@pytest.mark.parametrize("text", ["nothing = 1", "[", "cpu_limit = 'x'", "\x00"])
def test_a_settings_file_that_makes_no_sense(fail, broken, text):
    (broken / "fairlead.toml").write_text(text)
    try:
        fail("mlops", "track", "list")
    finally:
        (broken / "fairlead.toml").unlink()


def test_a_file_size_limit_leaves_nothing_half_written(broken, tmp_path):
    command = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300000,)*2);"
    command += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    command += "runpy.run_module('fairlead', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", command, "pack", str(broken / "model.onnx"), "--data",
         str(broken / "holdout.parquet"), "--labels", "label", "-o", str(tmp_path / "out")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


# Streams and processes


def _shell(line, folder, **environ):
    return subprocess.run(
        ["bash", "-c", line.replace("fairlead", f"{sys.executable} -m fairlead")],
        cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **environ},
    )  # fmt: skip


@pytest.mark.parametrize(("line", "code"), [
    ("fairlead guides list > /dev/full", 2),
    ("fairlead pack nothing --data x -o y 2> /dev/full", 2),
    ("fairlead pack nothing --data x -o y >&- 2>&-", 2),
    ("fairlead ask - <&-", 2),
    ("fairlead guides list | head -c 1", 0),
])  # fmt: skip
def test_streams_that_are_closed_or_full(broken, line, code):
    done = _shell(line, broken)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_terminal_without_unicode_or_width_gets_all_it_can_show(broken):
    line = "fairlead observe drift bundle --data holdout.parquet"
    done = _shell(line, broken, PYTHONIOENCODING="ascii", COLUMNS="0", TERM="dumb")
    assert done.returncode in {0, 1}, done.stderr
    assert "Monitoring" in done.stdout
    done = _shell(f"{line} --json", broken, PYTHONIOENCODING="latin-1")
    assert json.loads(done.stdout)["skill"]


def test_ctrl_c_says_that_the_same_command_goes_on(broken, plan_text, tmp_path):
    (tmp_path / "plan.toml").write_text(plan_text)
    command = [sys.executable, "-m", "fairlead", "run", "plan.toml"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert "step 1" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "error: interrupted" in said
    assert "Traceback" not in said


def test_sigterm_says_where_the_plan_stopped_and_the_same_command_goes_on(broken, tmp_path):
    from fairlead.api import plan, write_plan

    model, rows = str(broken / "model.onnx"), str(broken / "holdout.parquet")
    write_plan(
        plan("quantize my model to int8", model=model, data=rows, labels="label"),
        tmp_path / "plan.toml",
    )
    command = [sys.executable, "-m", "fairlead", "run", "plan.toml"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while "step 2" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 143
    assert "stopped in step 2 of " in said
    assert "1 finished before it, kept" in said
    assert "error: terminated" in said
    assert "Traceback" not in said
    again = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert again.returncode in {0, 1}, again.stderr
    assert "step 2" in again.stderr
    assert "step 1" not in again.stderr


def test_killed_packing_leaves_a_clean_place_after_the_next(broken, cli, tmp_path):
    words = ("pack", broken / "model.onnx", "--data", broken / "holdout.parquet", "--labels",
             "label", "-o", tmp_path / "place" / "out")  # fmt: skip
    place = tmp_path / "place"
    process = subprocess.Popen(
        [sys.executable, "-m", "fairlead", *map(str, words)],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (place.exists() and any(place.iterdir())):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (place / "out").exists():
        shutil.rmtree(place / "out")
    cli(*words, check=0)
    assert [path.name for path in place.iterdir()] == ["out"]
