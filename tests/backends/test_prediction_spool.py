"""The spool: what was written survives, whatever happens to the writer and to the bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fairlead.backends.prediction_frames import decode_frames, encode_frame
from fairlead.backends.prediction_log import ParquetPredictionLog
from fairlead.backends.prediction_rules import LogRules, is_kept
from fairlead.backends.prediction_segments import make_segments
from fairlead.core.errors import ConfigError, WorkspaceError

from .log_writer import committed
from .logged_requests import manifest, request

WRITER = ["-m", "tests.backends.log_writer"]
ROOT = Path(__file__).parents[2]
NUMBERS = st.sampled_from(["f4", "f8", "f2", "i8", "u2", "?", ">f4"]).flatmap(
    lambda kind: arrays.arrays(np.dtype(kind), arrays.array_shapes(min_dims=1, min_side=0))
)
TEXTS = st.lists(st.none() | st.text(max_size=5), max_size=5)
BLOCKS = st.dictionaries(
    st.text(max_size=5),
    NUMBERS | TEXTS | st.text(max_size=5) | st.integers(-(2**60), 2**60),
    max_size=4,
)


def same(found, block):
    if isinstance(block, np.ndarray):
        return found.shape == block.shape and np.array_equal(
            found, block, equal_nan=block.dtype.kind == "f"
        )
    return found.tolist() == block if isinstance(block, list) else found == block


@given(st.lists(BLOCKS, max_size=4))
def test_frames_come_back_as_they_went(frames):
    data = b"".join(encode_frame("k", blocks) for blocks in frames)
    found = list(decode_frames(data))
    assert [frame.kind for frame in found] == ["k"] * len(frames)
    for frame, blocks in zip(found, frames, strict=True):
        assert list(frame.blocks) == list(blocks)
        assert all(same(frame.blocks[name], block) for name, block in blocks.items())


@given(st.data())
def test_a_torn_end_costs_only_the_last_frame(data):
    parts = [encode_frame("k", {"n": i, "x": np.arange(i)}) for i in range(4)]
    whole = b"".join(parts)
    cut = data.draw(st.integers(0, len(whole)))
    found = [frame.blocks["n"] for frame in decode_frames(whole[:cut]) if frame is not None]
    ends = np.cumsum([len(part) for part in parts])
    assert found == list(range(int((ends <= cut).sum())))


@given(st.data())
@settings(max_examples=60)
def test_a_changed_byte_costs_only_its_frame(data):
    parts = [encode_frame("k", {"n": i, "x": np.arange(20)}) for i in range(3)]
    place = data.draw(st.integers(0, 2))
    torn = bytearray(parts[place])
    at = data.draw(st.integers(0, len(torn) - 1))
    torn[at] ^= data.draw(st.integers(1, 255))
    parts[place] = bytes(torn)
    found = [f.blocks["n"] for f in decode_frames(b"".join(parts)) if f is not None]
    assert set(range(3)) - {place} <= set(found) <= set(range(3))
    assert place not in found


def run_writer(*words, check=True):
    return subprocess.run(
        [sys.executable, *WRITER, *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=check, timeout=60,
    )  # fmt: skip


def ids(folder, **window):
    batch = ParquetPredictionLog(folder).read("s", **window)
    return [] if batch is None else list(batch.ids)


def test_kill_9_loses_nothing_that_was_committed(tmp_path):
    done = run_writer(tmp_path, "r", 120, "kill", check=False)
    assert done.returncode == -9
    expected = [f"r{i}" for i in range(120)]
    assert ids(tmp_path) == expected
    assert not list((tmp_path / "s").glob("*.parquet"))
    # The next server makes a segment of what the dead one left, and nobody reads a row twice.
    assert make_segments(tmp_path, "s") == 1
    left = [path for path in (tmp_path / "s").iterdir() if not path.name.startswith(".")]
    assert [path.suffix for path in left] == [".parquet"]
    assert ids(tmp_path) == expected


def test_the_writer_never_loads_the_library_of_parquet_and_leaves_parquet(tmp_path):
    run_writer(tmp_path, "r", 60)
    segments = list((tmp_path / "s").iterdir())
    assert [path.suffix for path in segments] == [".parquet"]
    assert pq.read_table(segments[0]).num_rows == 60


def test_a_full_disk_refuses_and_then_goes_on(tmp_path):
    done = run_writer(tmp_path, "r", 10, "full")
    problem, counts = done.stdout.splitlines()
    assert "cannot write the prediction log" in problem
    assert counts == "(11, 1, 0)"
    assert ids(tmp_path) == ["r0", "after", *(f"r{i}" for i in range(1, 10))]


def test_several_processes_write_while_others_read_and_make_segments(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, *WRITER, str(tmp_path), name, "150"], cwd=ROOT)
        for name in "ab"
    ]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        make_segments(tmp_path, "s")
        found = ids(tmp_path)
        assert len(found) == len(set(found)) >= seen
        seen = len(found)
    assert [writer.wait() for writer in writers] == [0, 0]
    assert sorted(ids(tmp_path)) == sorted(f"{name}{i}" for name in "ab" for i in range(150))


def test_a_segment_whose_spool_is_still_there_is_read_once(tmp_path):
    log = ParquetPredictionLog(tmp_path, flush_s=600)
    log.append_request(request())
    log.flush()
    spool = next((tmp_path / "s").glob("*.spool"))
    content = spool.read_bytes()
    log.close()
    spool.write_bytes(content)
    assert ids(tmp_path) == ["r"]
    assert make_segments(tmp_path, "s") == 0
    assert not spool.exists()
    assert ids(tmp_path) == ["r"]


def test_a_changed_spool_still_gives_its_other_rows(tmp_path, caplog):
    log = ParquetPredictionLog(tmp_path, flush_s=600)
    for i in range(3):
        log.append_request(request(f"r{i}", at=i))
        log.flush()
    spool = next((tmp_path / "s").glob("*.spool"))
    content = spool.read_bytes()
    at = content.index(b'"r1"')
    spool.write_bytes(content[:at] + b"???" + content[at + 3 :])
    assert ids(tmp_path) == ["r0", "r2"]
    assert "torn or changed" in caplog.text
    log.close()


def test_spools_become_segments_by_size_and_age(tmp_path):
    log = ParquetPredictionLog(tmp_path, flush_s=0.01, segment_s=0.05)
    log.append_request(request())
    while not list((tmp_path / "s").glob("*.parquet")):
        assert ids(tmp_path) in ([], ["r"])
    log.close()
    assert ids(tmp_path) == ["r"]


def test_commit_after_the_end_says_so(tmp_path):
    log = ParquetPredictionLog(tmp_path)
    log.close()
    assert isinstance(committed(log), WorkspaceError)


def logged(folder, rules, requests):
    log = ParquetPredictionLog(folder, flush_s=600, rules=LogRules.parse(rules))
    for item in requests:
        log.append_request(item)
    log.close()
    return log


def test_sampling_keeps_the_same_requests_everywhere_and_all_errors(tmp_path):
    rules = {"sample": [{"arm": "base*", "status": "*", "rate": 0.25}]}
    requests = [request(f"q{i}", 2, at=i) for i in range(400)]
    requests += [request(f"bad{i}", status=500, at=i) for i in range(10)]
    log = logged(tmp_path, rules, requests)
    kept = {name.split("#")[0] for name in ids(tmp_path)}
    assert kept == {f"q{i}" for i in range(400) if is_kept(f"q{i}", 0.25)} | {
        f"bad{i}" for i in range(10)
    }
    assert 60 < len(kept) < 160
    assert log.counts == (2 * (len(kept) - 10) + 10, 0, 2 * (410 - len(kept)))


def test_the_first_rule_that_fits_decides():
    rules = LogRules.parse(
        {
            "sample": [
                {"status": "4??", "rate": 0.5},
                {"model": "s", "arm": "candidate", "rate": 1},
                {"rate": 0},
            ],
            "keep_errors": False,
        }
    )
    rate = lambda **k: rules.rate(  # noqa: E731
        **{"model": "s", "version": "1", "arm": "baseline", "status": 200, **k}
    )
    assert (rate(status=422), rate(arm="candidate"), rate()) == (0.5, 1, 0)


SECRETS = np.array([["Ada", "x"], ["Ada", "y"], ["Bo", "z"]], object)


def test_hidden_columns_never_reach_the_disk(tmp_path):
    rules = {
        "column": [
            {"match": "input.a", "action": "hash"},
            {"match": "output.score*", "action": "redact"},
            {"match": "b", "action": "drop"},
        ]
    }
    log = ParquetPredictionLog(tmp_path, flush_s=600, rules=LogRules.parse(rules))
    log.append_request(request("r", 3, known=manifest("string", width=2), x=SECRETS))
    failed = request("f", known=manifest("string", width=2), x=SECRETS[:1], status=500, at=1)
    log.append_request(failed._replace(error="cannot read 'Ada'"))
    log.flush()
    raw = b"".join(path.read_bytes() for path in (tmp_path / "s").iterdir())
    assert b"Ada" not in raw
    batch = log.read("s")
    hashes = batch.inputs.columns["a"].tolist()
    assert list(batch.inputs.columns) == ["a"]
    assert hashes[0] == hashes[1] == hashes[3] != hashes[2]
    assert len(hashes[0]) == 32
    assert np.isnan(batch.outputs["score[yes]"]).all()
    assert batch.outputs["prediction"].tolist()[:3] == ["yes"] * 3
    assert batch.fields["error"].tolist() == ["", "", "", "[redacted]"]
    log.close()
    assert (tmp_path / ".hash-key").stat().st_mode & 0o077 == 0
    assert ParquetPredictionLog(tmp_path).read("s").inputs.columns["a"].tolist() == hashes


def test_messages_of_errors_can_be_spared_and_texts_cut(tmp_path):
    rules = {
        "column": [{"match": "error", "action": "keep"}, {"match": "b", "action": "redact"}],
        "max_text_length": 2,
    }
    item = request("f", known=manifest("string", width=2), x=SECRETS[:1], status=500)
    logged(tmp_path, rules, [item])
    batch = ParquetPredictionLog(tmp_path).read("s")
    assert batch.inputs.columns["a"].tolist() == ["Ad"]
    assert batch.inputs.columns["b"].tolist() == ["[redacted]"]
    assert batch.fields["error"].tolist() == ["failed"]


def test_rules_are_read_from_toml_and_json(tmp_path):
    toml = tmp_path / "rules.toml"
    toml.write_text('[[sample]]\nrate = 0.5\n[[column]]\nmatch = "a"\naction = "drop"\n')
    rules = LogRules.load(toml)
    assert rules.sample[0].rate == 0.5
    json_file = tmp_path / "rules.json"
    json_file.write_text(rules.model_dump_json())
    assert LogRules.load(json_file) == rules
    for text in ("rate = 1", "[[sample]]\nrate = 2", "[[", '[[column]]\nmatch="a"\naction="x"'):
        toml.write_text(text)
        with pytest.raises(ConfigError):
            LogRules.load(toml)
    with pytest.raises(ConfigError):
        LogRules.load(tmp_path / "none.toml")


def test_a_spool_is_locked_by_its_writer(tmp_path):
    log = ParquetPredictionLog(tmp_path, flush_s=600)
    log.append_request(request())
    log.flush()
    assert make_segments(tmp_path, "s") == 0
    assert [path.suffix for path in (tmp_path / "s").iterdir()] == [".spool"]
    log.close()


def test_half_a_character_is_written_and_read_like_any_other_text():
    texts = ["plain", "\ud83d", "half \udc00 way", None, "日本"]
    (frame,) = decode_frames(encode_frame("requests", {"id": texts}))
    assert frame is not None
    assert frame.blocks["id"].tolist() == texts
