"""Scoring files: every format, constant memory, nothing half-written."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from fairlead.api import Context
from fairlead.api.serving import score_batch
from fairlead.backends.runners import open_runner
from fairlead.core.errors import DataError, FairleadError, NotFoundError, UsageError

N = 1000


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=N) for name in "abcd"}
    return pa.table({"id": [f"{i:05d}" for i in range(N)], **columns, "kind": [1] * N})


@pytest.fixture
def context(tmp_path):
    return Context.open(home=tmp_path / ".fairlead")


def expected(bundle, table):
    x = np.stack([table[name].to_numpy() for name in "abcd"], axis=1).astype(np.float32)
    runner = open_runner(bundle)
    outputs = runner.run({"x": x})
    runner.close()
    return outputs


def write(table, path):
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=300)
    elif path.suffix in {".csv", ".tsv"}:
        options = pa.csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        pa.csv.write_csv(table, path, options)
    else:
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()) + "\n\n")
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_every_format_gives_the_models_own_predictions(wines, table, tmp_path, context, suffix):
    data = write(table, tmp_path / f"rows{suffix}")
    out = tmp_path / "deep" / "out.parquet"
    outcome = score_batch(wines.path, data, out=out, keep=["id"], chunk_rows=64, context=context)
    found = pq.read_table(out)
    own = expected(wines, table)
    assert found["id"].to_pylist() == table["id"].to_pylist()
    assert found["prediction"].to_pylist() == own["label"].tolist()
    np.testing.assert_allclose(found["score[1]"].to_numpy(), own["scores"][:, 1], atol=1e-5)
    assert outcome.noun == out
    assert outcome.report.measures[0].value == N
    assert [item.subject for item in outcome.evidence] == [wines.digest]


def test_columns_that_change_their_looks_are_still_numbers(wines, tmp_path, context):
    lines = ["a,b,c,d"] + ["1,2,3,"] * 300 + ["1.5,1e3,-2,4"] * 300
    data = tmp_path / "rows.csv"
    data.write_text("\n".join(lines))
    score_batch(wines.path, data, out=tmp_path / "o.parquet", chunk_rows=100, context=context)
    assert pq.read_table(tmp_path / "o.parquet").num_rows == 600


def test_text_models_read_digits_as_text(people, tmp_path, context):
    data = tmp_path / "rows.csv"
    data.write_text("city,age\n007,1\nOslo,2\n")
    score_batch(people.path, data, out=tmp_path / "o.parquet", context=context)
    assert pq.read_table(tmp_path / "o.parquet")["prediction"].to_pylist() == [2, 3]


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("missing.csv", None, NotFoundError, "no data"),
        ("rows.txt", b"a,b", DataError, "no known suffix"),
        ("rows.csv", b"", DataError, "empty"),
        ("rows.csv", b"a,b,c,d\n", DataError, "no rows"),
        ("rows.csv", b"a,b,c\n1,2,3\n", DataError, r"lacks the columns \['d'\]"),
        ("rows.csv", b"a,b,c,d\n1,2,3\n", DataError, "cannot be read"),
        ("rows.csv", b"a,b,c,d\n1,2,3,tall\n", DataError, "'tall'"),
        ("rows.jsonl", b"{\n", DataError, "not JSON"),
        ("rows.jsonl", b"[1]\n", DataError, "no JSON object"),
        ("rows.jsonl", b'{"a": 1}\n', DataError, "lacks the columns"),
        ("rows.parquet", b"PAR1 garbage", DataError, "cannot be read"),
        ("rows.parquet", b"", DataError, "cannot be read"),
    ],
)
def test_bad_files_leave_nothing_behind(wines, tmp_path, context, name, content, error, words):
    data = tmp_path / name
    if content is not None:
        data.write_bytes(content)
    out = tmp_path / "out" / "o.parquet"
    with pytest.raises(error, match=words) as caught:
        score_batch(wines.path, data, out=out, context=context)
    assert isinstance(caught.value, FairleadError)
    assert caught.value.hint
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_the_input_is_never_overwritten(wines, table, tmp_path, context):
    data = write(table, tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match="is read"):
        score_batch(wines.path, data, out=data, context=context)
    assert pq.read_table(data).equals(table)


def test_a_kept_column_may_not_hide_a_prediction(wines, table, tmp_path, context):
    data = write(table.append_column("prediction", table["a"]), tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match="both kept and predicted"):
        score_batch(wines.path, data, out=tmp_path / "o.csv", keep=["prediction"], context=context)
    with pytest.raises(UsageError, match="no known suffix"):
        score_batch(wines.path, data, out=tmp_path / "o", context=context)
    with pytest.raises(UsageError, match="predicts no column 'nope'"):
        score_batch(wines.path, data, out=tmp_path / "o.csv", columns=["nope"], context=context)
    with pytest.raises(DataError, match="lacks the columns"):
        score_batch(wines.path, data, out=tmp_path / "o.csv", keep=["nope"], context=context)


def test_the_command_prints_one_document(wines, table, tmp_path, cli):
    data = write(table, tmp_path / "rows.parquet")
    done = cli("serve", "batch", wines.path, data, "-o", tmp_path / "o.parquet", "--json", check=0)
    assert done.json["files"]["predictions"] == str(tmp_path / "o.parquet")
    wrong = cli("serve", "batch", wines.path, tmp_path / "no.csv", "-o", tmp_path / "p.parquet")
    assert wrong.returncode == 2
    assert "hint:" in wrong.stderr
