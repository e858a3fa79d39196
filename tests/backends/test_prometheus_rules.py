"""Rules as Prometheus itself reads and runs them; gauges as node_exporter takes them."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml

from fairlead.backends.prometheus_rules import render_rules
from fairlead.backends.prometheus_textfile import render_drift, write_drift
from fairlead.core.errors import ConfigError, UsageError
from fairlead.core.signal import Alert, Signal

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed"
)


def promtool(*words, given=None):
    return subprocess.run(
        ["promtool", *map(str, words)], input=given, capture_output=True, text=True, check=False
    )


def rules_file(folder, **changes):
    path = folder / "rules.yml"
    path.write_text(render_rules(service="digits", **changes))
    return path


@needs_promtool
@pytest.mark.parametrize("latency_ms", [0.1, 120.5, 30_000])
def test_promtool_accepts_the_rules(tmp_path, latency_ms):
    checked = promtool("check", "rules", rules_file(tmp_path, slo_latency_ms=latency_ms))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def series(name, labels, values):
    inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return {"series": f"{name}{{{inner}}}", "values": values}


def requests(status, values):
    labels = {"model": "digits", "version": "1", "arm": "baseline", "status": status}
    return series("fairlead_requests_total", labels, values)


def up():
    labels = {"model": "digits", "arm": "baseline", "instance": "a"}
    return series("fairlead_traffic_weight", labels, "1x600")


def firing(folder, inputs, at, **changes):
    """Return the names of the alerts that fire at a time, as promtool tells them."""
    rules = rules_file(folder, **changes)
    groups = yaml.safe_load(rules.read_text())["groups"]
    names = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    expected = [{"eval_time": at, "alertname": name, "exp_alerts": []} for name in sorted(names)]
    test = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": inputs, "alert_rule_test": expected}],
    }
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump(test))
    done = promtool("test", "rules", path)
    said = done.stdout + done.stderr
    found = set(re.findall(r"alertname: ?(\w+)", said))
    assert (done.returncode == 0) == (not found), said
    return found


@needs_promtool
def test_a_healthy_service_is_quiet(tmp_path):
    inputs = [up(), requests("200", "0+60x600"), requests("503", "0x560")]
    assert firing(tmp_path, inputs, "9h") == set()


@needs_promtool
def test_a_two_percent_burn_pages_within_half_an_hour(tmp_path):
    inputs = [up(), requests("200", "0+98x600"), requests("500", "0+2x600")]
    assert "FairleadAvailabilityBudgetBurn" in firing(tmp_path, inputs, "26m")


@needs_promtool
def test_one_error_at_one_request_a_minute_wakes_nobody(tmp_path):
    inputs = [up(), requests("200", "0+1x600"), requests("500", "0x300 1x300")]
    assert "FairleadAvailabilityBudgetBurn" not in firing(tmp_path, inputs, "303m")


@needs_promtool
def test_five_errors_at_little_traffic_do(tmp_path):
    inputs = [up(), requests("200", "0+1x600"), requests("500", "0x300 1 2 3 4 5 6 6x290")]
    assert "FairleadAvailabilityBudgetBurn" in firing(tmp_path, inputs, "306m")


@needs_promtool
def test_errors_of_the_client_spend_no_budget(tmp_path):
    inputs = [up(), requests("200", "0+50x600"), requests("400", "0+50x600")]
    assert firing(tmp_path, inputs, "2h") == set()


@needs_promtool
def test_slow_requests_burn_the_latency_budget(tmp_path):
    def histogram(bound, per_minute):
        labels = {"model": "digits", "version": "1", "arm": "baseline", "le": bound}
        name = "fairlead_request_duration_seconds_bucket"
        return series(name, labels, f"0+{per_minute}x600")

    labels = {"model": "digits", "version": "1", "arm": "baseline"}
    inputs = [
        up(),
        requests("200", "0+100x600"),
        series("fairlead_request_duration_seconds_count", labels, "0+100x600"),
        histogram("0.1", 60),
        histogram("0.25", 95),
        histogram("1.0", 100),
    ]
    assert firing(tmp_path, inputs, "2h", slo_latency_ms=100) == {"FairleadLatencyBudgetBurn"}
    assert firing(tmp_path, inputs, "2h", slo_latency_ms=1000) == set()


@needs_promtool
def test_silence_and_absence_are_told_apart(tmp_path):
    silent = [up(), requests("200", "0+60x60 3600x600")]
    assert firing(tmp_path, silent, "2h") == {"FairleadNoTraffic"}
    assert firing(tmp_path, [requests("200", "0+60x10")], "2h") == {"FairleadServiceDown"}


@needs_promtool
def test_lost_predictions_alarm_for_the_service_that_lost_them(tmp_path):
    lost = series("fairlead_predictions_dropped_total", {"instance": "a"}, "0+5x600")
    other = series("fairlead_predictions_dropped_total", {"instance": "b"}, "0+5x600")
    healthy = [up(), requests("200", "0+60x600")]
    assert firing(tmp_path, [*healthy, lost], "2h") == {"FairleadPredictionsDropped"}
    assert firing(tmp_path, [*healthy, other], "2h") == set()


@needs_promtool
def test_drift_and_an_old_comparison_alarm(tmp_path):
    healthy = [up(), requests("200", "0+60x600")]
    labels = {"service": "digits", "kind": "data-drift"}
    drift = series("fairlead_drift_alert", labels, "1x600")
    assert firing(tmp_path, [*healthy, drift], "1h") == {"FairleadDrift"}
    old = series("fairlead_drift_timestamp_seconds", {"service": "digits"}, "-200000x600")
    assert firing(tmp_path, [*healthy, old], "1h") == {"FairleadDriftNotWatched"}


def test_a_burn_that_no_outage_can_reach_has_no_rule():
    groups = yaml.safe_load(render_rules(service="s", slo_availability=0.9))["groups"]
    alerts = [rule for rule in groups[0]["rules"] if "alert" in rule]
    assert [rule["labels"]["window"] for rule in alerts] == ["6h", "1d", "3d"]


def test_bad_promises_and_names_are_refused():
    with pytest.raises(ConfigError, match="availability"):
        render_rules(service="s", slo_availability=1.5)
    with pytest.raises(UsageError, match="cannot name a service"):
        render_rules(service='a"} or up')


def signal(**changes):
    alert = Alert(name="data-drift", severity="ticket", text="t", advice="a")
    fields = {"kind": "data-drift", "service": "digits", "bundle_digest": "sha256:0",
              "n_rows": 10, "drifted": (), "alerts": (alert,)}  # fmt: skip
    return Signal(**{**fields, **changes})


@needs_promtool
def test_promtool_accepts_the_gauges():
    text = render_drift(signal(), {'odd "name"\\': 0.5, "gone": float("nan")}, at_s=1.0)
    checked = promtool("check", "metrics", given=text)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "gone" not in text


def test_gauges_are_written_for_another_user_to_read(tmp_path):
    path = tmp_path / "drift.prom"
    write_drift(path, signal(), {"a": 1.0}, at_s=2.0)
    assert 'fairlead_drift_alert{service="digits",kind="data-drift"} 1' in path.read_text()
    assert path.stat().st_mode & 0o044


def test_a_file_that_nobody_would_read_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.prom"):
        write_drift(tmp_path / "drift.txt", signal(), {}, at_s=0.0)
