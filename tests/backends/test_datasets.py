"""Rows from files, from scikit-learn and from functions."""

import datetime as dt
import decimal
import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.backends.arrow import array_from_arrow, arrow_from_array
from fairlead.backends.datasets import load_dataset, save_dataset
from fairlead.core.dataset import Dataset
from fairlead.core.errors import DataError, NotFoundError, WorkspaceError


def parquet(folder, **columns):
    path = folder / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_every_kind_of_column_is_read(tmp_path):
    day = dt.date(2024, 2, 29)
    path = parquet(
        tmp_path,
        whole=pa.array([1, 2]),
        gaps=pa.array([1, None]),
        truth=pa.array([True, None]),
        text=pa.array(["a", None]),
        coded=pa.array(["x", "y"]).dictionary_encode(),
        money=pa.array([decimal.Decimal("1.50"), None]),
        day=pa.array([day, None]),
        moment=pa.array([0, 3_600_000_000], pa.timestamp("us", tz="Europe/Oslo")),
        span=pa.array([1_500_000, None], pa.duration("us")),
        vector=pa.array([[1.0, 2.0], [3.0, 4.0]]),
        ragged=pa.array([[1], [1, 2]]),
        nothing=pa.nulls(2),
        record=pa.array([{"a": 1}, {"a": 2}]),
    )
    columns = load_dataset(path).columns
    assert columns["whole"].dtype == np.int64
    assert columns["gaps"].dtype == np.float64
    assert math.isnan(columns["gaps"][1])
    assert columns["truth"][0] == 1.0
    assert math.isnan(columns["truth"][1])
    assert columns["text"].tolist() == ["a", None]
    assert columns["coded"].tolist() == ["x", "y"]
    assert columns["money"][0] == 1.5
    assert columns["day"][0] == np.datetime64(day)
    assert np.isnat(columns["day"][1])
    assert columns["moment"][1] == np.datetime64("1970-01-01T01:00", "us")
    assert columns["span"][0] == 1.5
    assert math.isnan(columns["span"][1])
    assert columns["vector"].shape == (2, 2)
    assert columns["ragged"].dtype == object
    assert np.isnan(columns["nothing"]).all()
    assert columns["record.a"].tolist() == [1, 2]


def test_csv_is_read_with_its_delimiter_and_its_gaps(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("age;city;joined\n31;Oslo;2024-01-02\n;;2024-01-03\n")
    columns = load_dataset(path).columns
    assert math.isnan(columns["age"][1])
    assert columns["city"].tolist() == ["Oslo", None]
    assert columns["joined"].dtype == np.dtype("datetime64[us]")


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson"])
def test_json_lines_are_read(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_text('{"a": 1, "b": "x"}\n{"a": null, "b": null}\n')
    data = load_dataset(path, labels=None)
    assert data.columns["b"].tolist() == ["x", None]
    assert math.isnan(data.columns["a"][1])


def test_npz_is_read_without_pickle(tmp_path):
    np.savez(tmp_path / "ok.npz", x=np.ones((3, 2)), y=np.array(["a", "b", "a"]))
    data = load_dataset(tmp_path / "ok.npz", labels="y")
    assert data.columns["x"].shape == (3, 2)
    assert data.labels.tolist() == ["a", "b", "a"]
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(tmp_path / "evil.npz")


def test_the_index_of_pandas_is_no_column(tmp_path):
    path = parquet(tmp_path, a=[1, 2], __index_level_0__=[0, 1])
    assert list(load_dataset(path).columns) == ["a"]


def test_bundled_data_sets_bring_their_labels():
    data = load_dataset("sklearn:digits")
    assert (data.n_rows, data.label_name, "pixel_63" in data.columns) == (1797, "label", True)
    with pytest.raises(DataError, match="no bundled data set"):
        load_dataset("sklearn:mnist")


def test_a_function_gives_rows(tmp_path, monkeypatch):
    (tmp_path / "my_rows_of_a.py").write_text(
        "import numpy as np\n"
        "def pair(): return np.ones((4, 2)), ['a', 'b', 'a', 'b']\n"
        "def table(): return {'x': [1, 2, 3], 'y': [0, 1, 0]}\n"
        "def nothing(): return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    pair = load_dataset("my_rows_of_a:pair")
    assert (list(pair.columns), pair.labels.tolist()) == (["feature_0", "feature_1"], list("abab"))
    assert load_dataset("my_rows_of_a:table", labels="y").labels.tolist() == [0, 1, 0]
    with pytest.raises(DataError, match="returned int"):
        load_dataset("my_rows_of_a:nothing")
    with pytest.raises(NotFoundError, match="no_such_module_of_a"):
        load_dataset("no_such_module_of_a:rows")


def test_a_data_frame_is_taken(tmp_path, monkeypatch):
    pytest.importorskip("pandas")
    (tmp_path / "my_frame_of_a.py").write_text(
        "import pandas as pd\n"
        "def rows(): return pd.DataFrame({'x': [1.0, None], 't': ['a', None]})\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_dataset("my_frame_of_a:rows").columns["t"].tolist() == ["a", None]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.jsonl", "rows.npz"])
def test_garbage_is_an_error_that_names_the_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(DataError, match=name.replace(".", r"\.")) as found:
        load_dataset(path)
    assert found.value.hint


@pytest.mark.parametrize(
    ("name", "content"), [("rows.csv", b""), ("rows.csv", b"a,b\n"), ("rows.parquet", b"")]
)
def test_no_rows_is_an_error(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError):
        load_dataset(path)


def test_a_table_without_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no rows"):
        load_dataset(parquet(tmp_path, a=pa.array([], pa.int64())))


@pytest.mark.parametrize(
    ("reference", "error"),
    [("missing.parquet", NotFoundError), ("missing", NotFoundError), ("rows.xlsx", DataError)],
)
def test_what_is_not_there_or_not_known_is_told(tmp_path, monkeypatch, reference, error):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    with pytest.raises(error) as found:
        load_dataset(reference)
    assert ".parquet" in found.value.hint


def test_a_folder_is_an_error(tmp_path):
    (tmp_path / "rows.parquet").mkdir()
    with pytest.raises(DataError, match="not a file"):
        load_dataset(tmp_path / "rows.parquet")


def test_a_missing_label_column_lists_the_columns(tmp_path):
    with pytest.raises(DataError, match="no column `target`") as found:
        load_dataset(parquet(tmp_path, a=[1], b=[2]), labels="target")
    assert "a, b" in found.value.hint


def test_missing_labels_are_counted_and_placed(tmp_path):
    path = parquet(tmp_path, a=[1, 2, 3], y=pa.array([1.0, None, float("nan")]))
    with pytest.raises(DataError, match=r"missing in 2 of 3 rows \(rows 1, 2"):
        load_dataset(path, labels="y")
    path = parquet(tmp_path, a=[1, 2, 3], y=pa.array(["x", None, "y"]))
    with pytest.raises(DataError, match=r"missing in 1 of 3 rows \(rows 1,"):
        load_dataset(path, labels="y")


def test_labels_of_several_values_or_of_time_are_refused(tmp_path):
    path = parquet(tmp_path, v=pa.array([[1.0, 2.0]]), t=pa.array([0], pa.timestamp("us")))
    for name in ("v", "t"):
        with pytest.raises(DataError, match="expected one number or text per row"):
            load_dataset(path, labels=name)


def test_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="more than one column named 'a'"):
        load_dataset(path)


def test_saving_needs_a_folder_that_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError):
        save_dataset(Dataset({"a": np.ones(1)}), tmp_path / "file" / "rows.parquet")


def test_labels_may_not_hide_a_column(tmp_path):
    with pytest.raises(DataError, match="`label`"):
        save_dataset(Dataset({"label": np.ones(1)}, np.ones(1)), tmp_path / "rows.parquet")


ROWS = st.integers(1, 5)
CELLS = {
    "float": st.floats(allow_nan=True, allow_infinity=True),
    "int": st.integers(-(2**63), 2**63 - 1),
    "bool": st.booleans(),
    "text": st.one_of(st.none(), st.text(max_size=4)),
}


@st.composite
def datasets(draw):
    n_rows = draw(ROWS)
    columns = {}
    for kind, cells in CELLS.items():
        values = draw(st.lists(cells, min_size=n_rows, max_size=n_rows))
        dtype = {"float": float, "int": np.int64, "bool": bool, "text": object}[kind]
        columns[kind] = np.array(values, dtype=dtype)
    columns["image"] = np.arange(n_rows * 6, dtype=np.float32).reshape(n_rows, 2, 3)
    return Dataset(columns, np.arange(n_rows), "target")


@given(datasets())
def test_what_is_saved_is_read_back(tmp_path_factory, data):
    if all(value is None for value in data.columns["text"]):
        data.columns["text"][:] = "x"
    path = save_dataset(data, tmp_path_factory.mktemp("rows") / "rows.parquet")
    assert load_dataset(path, labels="target").digest == data.digest


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False)), min_size=1))
def test_missing_numbers_become_nan(values):
    found = array_from_arrow(pa.array(values, pa.float64()))
    expected = [np.nan if value is None else value for value in values]
    assert np.array_equal(found, expected, equal_nan=True)


def test_mixed_objects_are_written_as_text():
    assert arrow_from_array(np.array([1, "a", None], dtype=object)).to_pylist() == ["1", "a", None]


def test_lists_are_read_in_a_process_that_has_loaded_nothing_else(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"vector": [[1.0, 2.0], [3.0, 4.0]]}), path)
    ask = (
        "import sys; from fairlead.backends.datasets import load_dataset; "
        "print(load_dataset(sys.argv[1]).columns['vector'].shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "(2, 2)", done.stderr
