"""Scoring large, dirty and interrupted input: constant memory, exactly once, nothing hidden."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fairlead.api import Context
from fairlead.api.serving import score_batch
from fairlead.backends.part_files import PartFiles
from fairlead.backends.row_chunks import Wanted, read_chunks
from fairlead.core.errors import ConflictError, DataError
from fairlead.core.files import digest_file
from fairlead.core.signature import Signature, TensorSpec
from fairlead.measure.profile import build_profile

from . import inference_models as models


@pytest.fixture
def context(tmp_path):
    return Context.open(home=tmp_path / ".fairlead")


def rows(n, *, seed=0):
    rng = np.random.default_rng(seed)
    columns = {name: rng.normal(size=n) for name in "abcd"}
    return pa.table({"id": [f"{i:07d}" for i in range(n)], **columns})


def measure(outcome, name):
    return next(item.value for item in outcome.report.measures if item.name == name)


def command(*words):
    return [sys.executable, "-m", "fairlead", "serve", "batch", *map(str, words)]


def test_bad_rows_are_set_apart_with_reasons(wines, tmp_path, context):
    data = tmp_path / "rows.csv"
    lines = [
        b"id,a,b,c,d",
        b"r0,1,2,3,4",
        b"r1,1,2",
        b"r2,tall,2,3,4",
        b"r3,1,2,3,4",
        b"r4,1,\xff,3,4",
    ]
    lines += [b"r5,1,,3,4", b"r6,1,2,3,4,5"]
    data.write_bytes(b"\n".join(lines) + b"\n")
    out = tmp_path / "o.parquet"
    outcome = score_batch(wines.path, data, out=out, keep=["id"], context=context)
    assert pq.read_table(out)["id"].to_pylist() == ["r0", "r3", "r5"]
    bad = pq.read_table(tmp_path / "o.quarantine.parquet").to_pylist()
    assert [item["row"] for item in bad] == [1, 2, 4, 6]
    assert {item["file"] for item in bad} == {str(data)}
    for item, reason, raw in zip(
        bad,
        ("3 values for 5", "column `a` holds 'tall'", "`b` is no UTF-8", "6 values for 5"),
        ("r1,1,2", '"tall"', "\\xff", "r6,1,2,3,4,5"),
        strict=True,
    ):
        assert reason in item["reason"]
        assert raw in item["raw"]
    assert (measure(outcome, "scored_rows"), measure(outcome, "bad_rows")) == (3, 4)
    assert "4 rows could not be predicted" in outcome.report.findings[0].text
    # A later run without bad rows leaves no stale file of them.
    data.write_text("id,a,b,c,d\nr0,1,2,3,4\n")
    score_batch(wines.path, data, out=out, context=context)
    assert not (tmp_path / "o.quarantine.parquet").exists()


def test_lines_that_are_no_objects_are_set_apart(wines, tmp_path, context):
    data = tmp_path / "rows.jsonl"
    good = json.dumps(dict.fromkeys("abcd", 1.0))
    data.write_text(f"{good}\n{{\n\n[1]\n{good}\n")
    score_batch(wines.path, data, out=tmp_path / "o.jsonl", chunk_rows=2, context=context)
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 2
    bad = pq.read_table(tmp_path / "o.quarantine.parquet").to_pylist()
    assert [(item["row"], item["raw"]) for item in bad] == [(1, "{"), (2, "[1]")]


def lookup_bundle(target):
    """A model that fails on indices outside its table of 10 values."""
    model = models.save_model(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        [models.value("i", TensorProto.INT64, ["n"])],
        [models.value("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.arange(10, dtype=np.float32), "table")],
    )
    onnx.checker.check_model(onnx.load_from_string(model))
    return models.pack_model(
        target,
        model,
        Signature(
            inputs=(TensorSpec(name="i", dtype="int64", shape=(-1,)),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=(-1,)),),
        ),
        profile=build_profile({"i": np.arange(10)}, {}, "sha256:0"),
        name="lookup",
        task="regression",
        feature_columns=("i",),
        prediction_output="y",
    )


def test_rows_on_which_the_model_fails_do_not_cost_the_others(tmp_path, context):
    values = [3, 99, 5, None, 7, -50, 2]
    data = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"i": values}), data)
    bundle = lookup_bundle(tmp_path / "bundle")
    score_batch(bundle.path, data, out=tmp_path / "o.parquet", keep=["i"], context=context)
    found = pq.read_table(tmp_path / "o.parquet")
    assert found["prediction"].to_pylist() == [3, 5, 7, 2]
    bad = pq.read_table(tmp_path / "o.quarantine.parquet")
    assert bad["row"].to_pylist() == [1, 3, 5]
    assert "missing values" in bad["reason"][1].as_py()


def test_input_of_which_nothing_can_be_predicted_is_refused(wines, tmp_path, context):
    data = tmp_path / "rows.csv"
    data.write_text("a,b,c,d\n" + "x,1,2,3\n" * 5000)
    with pytest.raises(DataError, match=r"none of the .* rows .*'x'"):
        score_batch(wines.path, data, out=tmp_path / "o.parquet", chunk_rows=1000, context=context)
    assert [path.name for path in tmp_path.glob("o.*")] == []


def test_folders_patterns_and_formats(wines, tmp_path, context):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    table = rows(300)
    pq.write_table(table.slice(0, 100), folder / "a.parquet")
    pa.csv.write_csv(table.slice(100, 100), folder / "b.csv")
    pq.write_table(table.slice(200), folder / "deep" / "c.parquet")
    (folder / "notes.txt").write_text("no rows")
    outs = [tmp_path / f"o.{kind}" for kind in ("parquet", "csv", "jsonl")]
    for out in outs:
        score_batch(
            wines.path, folder, out=out, keep=["id"], columns=["prediction"], chunk_rows=70,
            context=context,
        )  # fmt: skip
    found = pq.read_table(outs[0])
    assert found.column_names == ["id", "prediction"]
    assert found["id"].to_pylist() == table["id"].to_pylist()
    convert = pa.csv.ConvertOptions(column_types={"id": pa.string()})
    assert pa.csv.read_csv(outs[1], convert_options=convert).equals(found)
    assert [json.loads(line) for line in outs[2].read_text().splitlines()] == found.to_pylist()
    score_batch(
        wines.path, [str(folder / "*.parquet"), folder / "b.csv"], out=outs[0], context=context
    )
    assert pq.read_table(outs[0]).num_rows == 200


def test_standard_input_is_read(wines, tmp_path):
    text = "".join(json.dumps(dict.fromkeys("abcd", float(i))) + "\n" for i in range(5))
    done = subprocess.run(
        command(wines.path, "-", "-o", tmp_path / "o.csv", "--json"),
        input=text, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["measures"][0]["value"] == 5
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 6


def test_processes_give_the_same_bytes_as_threads(wines, tmp_path, context):
    data = tmp_path / "rows.parquet"
    pq.write_table(rows(2000), data)
    digests = set()
    for engine, workers in (("threads", 1), ("threads", 3), ("processes", 2)):
        out = tmp_path / f"{engine}{workers}.parquet"
        score_batch(
            wines.path, data, out=out, engine=engine, workers=workers, chunk_rows=300,
            context=context,
        )  # fmt: skip
        digests.add(digest_file(out))
    assert len(digests) == 1


def wait_for_parts(process, folder, count):
    while process.poll() is None:
        if len(list(folder.glob("[0-9]*.json"))) >= count:
            return
        time.sleep(0.005)
    raise AssertionError("it ended before it could be killed")


def test_kill_9_and_the_same_command_again_give_the_same_bytes(wines, tmp_path):
    data = tmp_path / "rows.csv"
    pa.csv.write_csv(rows(12_000), data)
    with data.open("ab") as file:
        file.write(b"bad,row\n")
    words = [wines.path, data, "--keep", "id", "--chunk-rows", 100, "--json"]
    whole = subprocess.run(
        command(*words, "-o", tmp_path / "whole.parquet"), check=True, capture_output=True
    )
    out = tmp_path / "killed.parquet"
    parts = tmp_path / "killed.parquet.parts"
    for count in (20, 50):
        process = subprocess.Popen(command(*words, "-o", out), stdout=subprocess.DEVNULL)
        wait_for_parts(process, parts, count)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists()
    done = subprocess.run(command(*words, "-o", out), check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    measures = {item["name"]: item["value"] for item in found["measures"]}
    assert measures["resumed_rows"] >= 5000
    assert measures["scored_rows"] == 12_000
    assert "already done" in done.stderr
    assert found["details"]["digest"] == json.loads(whole.stdout)["details"]["digest"]
    assert digest_file(out) == digest_file(tmp_path / "whole.parquet")
    assert pq.read_table(out)["id"].to_pylist() == [f"{i:07d}" for i in range(12_000)]
    assert not parts.exists()
    assert digest_file(tmp_path / "killed.quarantine.parquet") == digest_file(
        tmp_path / "whole.quarantine.parquet"
    )


def test_parts_of_another_job_are_not_used(wines, tmp_path, context):
    data = tmp_path / "rows.parquet"
    pq.write_table(rows(500), data)
    out = tmp_path / "o.parquet"
    parts = PartFiles(out)
    with parts.claimed({"another": "job"}):
        parts.write(0, pa.table({"prediction": [99]}), None)
    outcome = score_batch(wines.path, data, out=out, chunk_rows=100, context=context)
    assert measure(outcome, "resumed_rows") == 0
    assert 99 not in pq.read_table(out)["prediction"].to_pylist()


def test_two_runs_do_not_write_one_output(wines, tmp_path, context):
    data = tmp_path / "rows.parquet"
    pq.write_table(rows(5), data)
    with (
        PartFiles(tmp_path / "o.parquet").claimed({}),
        pytest.raises(ConflictError, match="another process"),
    ):
        score_batch(wines.path, data, out=tmp_path / "o.parquet", context=context)


def test_a_full_disk_keeps_what_is_done(wines, tmp_path):
    data = tmp_path / "rows.parquet"
    pq.write_table(rows(60_000), data)
    words = [wines.path, data, "-o", tmp_path / "o.parquet", "--chunk-rows", 2000, "--json"]
    env = {**os.environ, "FAIRLEAD_HOME": str(tmp_path / ".fairlead")}
    limited = ["bash", "-c", 'ulimit -f 400; exec "$@"', "bash", *command(*words)]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 2, done.stderr
    assert "cannot write the predictions" in done.stderr
    assert not (tmp_path / "o.parquet").exists()
    done = subprocess.run(command(*words), capture_output=True, text=True, check=True, env=env)
    measures = {item["name"]: item["value"] for item in json.loads(done.stdout)["measures"]}
    assert measures["resumed_rows"] == measures["scored_rows"] == 60_000


def peak_mb(tmp_path, wines, data):
    """Peak resident memory of scoring a file, in MB."""
    code = (
        "import resource, sys\n"
        "from fairlead.entrypoints.cli.app import _run\n"
        "assert _run(sys.argv[1:], is_debug=True) == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )
    words = ["serve", "batch", wines.path, data, "-o", tmp_path / "o.parquet", "--keep", "text"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


def test_memory_does_not_grow_with_the_file(wines, tmp_path):
    table = rows(8_000).append_column("text", pa.array([f"{i:03000d}" for i in range(8_000)]))
    small, large = tmp_path / "small.csv", tmp_path / "large.csv"
    pa.csv.write_csv(table, small)
    with large.open("wb") as file:
        content = small.read_bytes()
        file.write(content)
        body = content[content.index(b"\n") + 1 :]
        for _ in range(19):
            file.write(body)
    assert large.stat().st_size > 400e6
    first, second = (peak_mb(tmp_path, wines, data) for data in (small, large))
    assert pq.read_metadata(tmp_path / "o.parquet").num_rows == 160_000
    assert second < first + 100


LINES = st.lists(
    st.sampled_from(["1,2", "x,2", "1", "1,2,3", '"a\nb",1', "é,", ",", "-1e3,007"]), max_size=40
)


def test_wide_text_takes_little_memory(wines, tmp_path, cli):
    """Columns that nobody wants are many; the model takes four of them."""
    data = tmp_path / "wide.csv"
    table = rows(4000)
    wide = {f"extra_{i}": table["a"] for i in range(300)}
    pyarrow.csv.write_csv(pa.table({**{n: table[n] for n in table.column_names}, **wide}), data)
    assert data.stat().st_size > 20_000_000
    done = cli("serve", "batch", wines.path, data, "-o", tmp_path / "o.parquet", "--json", check=0)
    found = {item["name"]: item["value"] for item in done.json["measures"]}
    assert found["scored_rows"] == 4000
    # Python, Arrow, ONNX Runtime and the state take 170 MB of it before the first row.
    assert found["peak_memory_bytes"] < 300e6


@given(LINES, st.integers(1, 9))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_hold_every_row_once_whatever_their_size(tmp_path, lines, size):
    data = tmp_path / "rows.csv"
    data.write_text("\n".join(["a,b", *lines]) + "\n")
    chunks = list(read_chunks(data, Wanted(texts=("a", "b")), chunk_rows=size))
    good = [int(row) for chunk in chunks for row in chunk.rows]
    bad = [item.row for chunk in chunks for item in chunk.bad]
    assert sorted(good + bad) == list(range(len(lines)))
    assert bad == [i for i, line in enumerate(lines) if line in {"1", "1,2,3"}]
    for chunk in chunks[:-1]:
        assert len(chunk.rows) + len(chunk.bad) == size
        assert chunk.table.num_rows == len(chunk.rows)


def test_ray_gives_the_same_predictions(wines, tmp_path, context):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    data = tmp_path / "rows.parquet"
    pq.write_table(rows(1000), data)
    tables = []
    for engine in ("threads", "ray"):
        out = tmp_path / f"{engine}.parquet"
        score_batch(
            wines.path, data, out=out, keep=["id"], engine=engine, chunk_rows=200, context=context
        )
        tables.append(pq.read_table(out))
    assert tables[0].equals(tables[1])


def test_ray_is_asked_for_by_name_when_it_is_missing(wines, tmp_path, cli):
    if "ray" in sys.modules or _has_ray():
        pytest.skip("Ray is installed")
    data = tmp_path / "rows.parquet"
    pq.write_table(rows(5), data)
    done = cli("serve", "batch", wines.path, data, "-o", tmp_path / "o.csv", "--engine", "ray")
    assert done.returncode == 2
    assert "fairlead[ray]" in done.stderr


def _has_ray():
    from importlib.util import find_spec

    return find_spec("ray") is not None


def children_of(pid):
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


def test_processes_end_with_their_killed_parent(wines, tmp_path):
    data = tmp_path / "rows.parquet"
    pq.write_table(rows(40_000), data)
    words = [wines.path, data, "-o", tmp_path / "o.parquet", "--chunk-rows", 50]
    process = subprocess.Popen(command(*words, "--engine", "processes", "--workers", 2))
    wait_for_parts(process, tmp_path / "o.parquet.parts", 4)
    children = children_of(process.pid)
    process.kill()
    process.wait()
    assert len(children) >= 2
    deadline = time.monotonic() + 20
    while any(_is_alive(pid) for pid in children):
        assert time.monotonic() < deadline


def _is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 (may vanish while it is read)
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
