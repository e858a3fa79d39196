"""`fairlead observe` as a user calls it, with a real server where one is needed."""

from __future__ import annotations

import json
import re
import time
import urllib.request

import numpy as np
import pytest

from fairlead.api.context import Context
from fairlead.backends.datasets import load_dataset, save_dataset
from fairlead.backends.endpoint import EndpointClient, spawn_server
from fairlead.backends.prometheus_rules import LATENCY_BUCKETS_S
from fairlead.entrypoints.cli.app import main


@pytest.fixture
def here(monkeypatch, tmp_path, capsys):
    """Run `fairlead` in this process, which is quicker; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words, home=None, cwd=None):
        if home is not None:
            monkeypatch.setenv("FAIRLEAD_HOME", home)
        if cwd is not None:
            monkeypatch.chdir(cwd)
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return left.value.code, said.out, said.err

    return run


def test_quiet_rows_exit_zero(cli, bundles):
    done = cli("observe", "drift", bundles / "baseline", "--data", bundles / "holdout.parquet",
               "--fail-on-drift", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["details"]["kind"] == "quiet"


def test_drift_fails_only_where_asked(cli, bundles, tmp_path):
    words = ["observe", "drift", bundles / "baseline", "--data", bundles / "shifted.parquet"]
    gauges = tmp_path / "drift.prom"
    assert cli(*words, "--textfile", gauges).returncode == 0
    assert 'fairlead_drift_alert{service="digits",kind="data-drift"} 1' in gauges.read_text()
    failed = cli(*words, "--fail-on-drift")
    assert failed.returncode == 1
    assert "pixel_" in failed.stdout


def test_monitor_takes_a_bundle_and_further_settings(here, bundles):
    rows = bundles / "shifted.parquet"
    code, out, err = here("observe", "monitor", bundles / "baseline", "--data", rows,
               "--set", "shown_columns=1", "--json")  # fmt: skip
    assert code == 0, err
    assert len(json.loads(out)["plots"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["drift"], "neither rows nor a service"),
        (["drift", "--data", "x.parquet"], "without a bundle"),
        (["drift", "BUNDLE", "--data", "nothing.parquet"], "no data at nothing.parquet"),
        (["drift", "nowhere", "--data", "x.parquet"], "no bundle at nowhere"),
        (["drift", "--service", "ghost"], "no prediction of `ghost`"),
        (["drift", "--service", "ghost", "--since", "soon"], "'soon' is no length of time"),
        (["drift", "--service", "../x"], "cannot name a service"),
        (["monitor", "ghost"], "no prediction of `ghost`"),
        (["monitor", "BUNDLE", "--data", "DATA", "--set", "alpah=1"], "alpah"),
        (["monitor", "BUNDLE", "--data", "DATA", "--set", "alpah"], "KEY=VALUE"),
        (["slo", "--service", "ghost"], "no prediction of `ghost`"),
        (["alerts", "--service", "a b", "-o", "r.yml"], "cannot name a service"),
        (["debug", "slices", "BUNDLE", "--data", "NOLABEL"], "has no labels"),
        (["debug", "latency", "--service", "ghost"], "no prediction of `ghost`"),
        (["debug", "latency", "--service", "x", "--url", "http://127.0.0.1:9"], "127.0.0.1:9"),
    ],
)
def test_wrong_use_is_told_with_a_next_step(here, bundles, tmp_path, words, said):
    rows = load_dataset(bundles / "holdout.parquet", labels="label")
    bare = tmp_path / "bare.parquet"
    save_dataset(type(rows)(rows.columns), bare)
    places = {
        "BUNDLE": bundles / "baseline", "DATA": bundles / "holdout.parquet", "NOLABEL": bare,
    }  # fmt: skip
    code, _, err = here("observe", *(places.get(word, word) for word in words))
    assert code == 2
    assert said in err
    assert "hint:" in err


@pytest.mark.parametrize("spoil", ["empty", "text", "short"])
def test_rows_that_do_not_fit_are_refused(here, bundles, tmp_path, spoil):
    rows = load_dataset(bundles / "holdout.parquet", labels="label")
    path = tmp_path / "bad.csv"
    if spoil == "empty":
        path.write_text("pixel_0,label\n")
    elif spoil == "short":
        path.write_text("pixel_0,label\n1,2\n")
    else:
        header = ",".join([*rows.columns, "label"])
        path.write_text(header + "\n" + ",".join(["dark"] * 64) + ",3\n")
    code, _, err = here("observe", "drift", bundles / "baseline", "--data", path)
    assert code == 2
    assert "hint:" in err


def test_slices_are_found_in_shifted_rows(here, bundles):
    code, out, err = here("observe", "debug", "slices", bundles / "baseline", "--data",
               bundles / "shifted.parquet", "--labels", "label", "--json")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["details"]["worst_slice"]


def test_alert_rules_are_written(here, tmp_path):
    path = tmp_path / "rules.yml"
    words = ["--service", "digits", "--slo-latency-ms", "100", "-o", path]
    code, _, err = here("observe", "alerts", *words)
    assert code == 0, err
    assert "FairleadAvailabilityBudgetBurn" in path.read_text()


@pytest.fixture(scope="module")
def served(bundles, tmp_path_factory):
    """A service that answered 120 shifted rows, and still runs; gives its workspace and URL."""
    home = tmp_path_factory.mktemp("served") / ".fairlead"
    context = Context.open(home=home)
    rows = load_dataset(bundles / "shifted.parquet", labels="label")
    bundle = bundles / "baseline"
    table = np.stack([rows.columns[f"pixel_{i}"] for i in range(64)], axis=1).astype(np.float32)
    with spawn_server(bundle, workspace=context.workspace, name="digits") as handle:
        with EndpointClient(handle.endpoint.url, "digits") as client:
            for row in table[:120]:
                client.infer({"pixels": row[None, :]})
        yield home, handle.endpoint.url


def wait_for_log(here, home):
    for _ in range(100):
        code, out, err = here("observe", "slo", "--service", "digits", "--json", home=home)
        if code == 0 and json.loads(out)["details"]["budgets"][0]["requests"] == 120:
            return json.loads(out)
        time.sleep(0.1)
    raise AssertionError(err)


def test_a_running_service_is_watched_from_its_log(here, served, bundles):
    home = str(served[0])
    budgets = wait_for_log(here, home)["details"]["budgets"]
    assert [budget["promise"] for budget in budgets] == ["availability", "latency"]
    assert budgets[0]["left_ratio"] == 1.0
    words = ["--service", "digits", "--since", "1h", "--json"]
    code, out, err = here("observe", "drift", *words, cwd=bundles)
    assert code == 0, err
    details = json.loads(out)["details"]
    assert details["kind"] == "data-drift"
    assert details["drifted"][0]["column"].startswith("pixel_")


def test_a_bundle_that_is_nowhere_to_be_found_is_asked_for(here, served, bundles):
    home = str(served[0])
    wait_for_log(here, home)
    code, _, err = here("observe", "monitor", "digits")
    assert code == 2
    assert "--bundle" in err
    code, _, err = here("observe", "monitor", "digits", "--bundle", bundles / "baseline")
    assert code == 0, err


def test_the_time_of_requests_is_divided_from_log_and_probe(here, served):
    home, url = str(served[0]), served[1]
    wait_for_log(here, home)
    inside = {"queue", "run", "read-and-write"}
    for further, parts in (
        ([], inside),
        (["--url", url, "--probe", "40"], {"client-and-network", *inside}),
    ):
        words = ["--service", "digits", "--json", *further]
        code, out, err = here("observe", "debug", "latency", *words)
        assert code == 0, err
        details = json.loads(out)["details"]
        assert {part["part"] for part in details["parts"]} == parts
        assert sum(part["share"] for part in details["parts"]) == pytest.approx(1.0)


def test_the_rules_speak_of_the_servers_own_metrics(served):
    with urllib.request.urlopen(f"{served[1]}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    bounds = re.findall(r'fairlead_request_duration_seconds_bucket\{[^}]*le="([0-9.e-]+)"', text)
    assert {float(bound) for bound in bounds} == set(LATENCY_BUCKETS_S)
    for name in ("fairlead_requests_total", "fairlead_traffic_weight",
                 "fairlead_predictions_dropped_total"):  # fmt: skip
        assert name in text
