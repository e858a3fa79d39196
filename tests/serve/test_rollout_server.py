"""Rollouts on real servers, with a real client."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from fairlead.api.context import Context
from fairlead.api.rollout import abort_rollout, roll_out, rollout_status, watch_rollout
from fairlead.backends.endpoint import spawn_server
from fairlead.core.bundle import Bundle, derive_bundle
from fairlead.core.comparison import ModelComparison
from fairlead.core.errors import (
    DataError,
    EndpointError,
    FairleadError,
    NotFoundError,
    SignatureError,
    UsageError,
)
from fairlead.entrypoints.cli.app import main
from tests.serve.inference_models import classifier_bundle, text_bundle
from tests.serve.rollout_models import failing_bundle, price_bundle, prices_file, rows_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("rollout")
    classifier_bundle(made / "baseline")
    classifier_bundle(made / "equal", shift=0.001)
    classifier_bundle(made / "wrong", shift=2.0)
    failing_bundle(made / "failing")
    rows_file(made / "rows.parquet")
    return made


@pytest.fixture
def context(tmp_path):
    return Context.open(home=tmp_path / "home")


def canary(folder, candidate, context, **settings):
    # The machine of a test is busy, so latency shall not decide it.
    options = {"guardrails": ["errors", "quality"], **settings}
    return roll_out(
        folder / "baseline", folder / candidate, str(folder / "rows.parquet"), labels="kind",
        settings=options, context=context,
    )  # fmt: skip


def test_an_equal_bundle_is_promoted_on_all_three_guardrails(folder, context):
    outcome = canary(
        folder, "equal", context, guardrails=["errors", "latency", "quality"],
        latency_tolerance_ms=1000, steps=[0.5], absolute_failure_tolerance=0.03,
    )  # fmt: skip
    assert outcome.noun.action == "promote"
    assert outcome.noun.candidate == Bundle.open(folder / "equal").digest
    assert [guard.metric for guard in outcome.noun.guardrails] == ["errors", "latency", "quality"]
    stored = context.evidence.query(subject=outcome.noun.candidate)
    assert {item.metric for item in stored} >= {"rollout_harm_e_value", "rollout_errors_ratio"}


def test_a_bundle_that_predicts_worse_is_rolled_back(folder, context):
    outcome = canary(folder, "wrong", context)
    assert outcome.noun.action == "roll-back"
    assert outcome.noun.reason.startswith("quality")
    assert rollout_status(context=context).noun.decision == outcome.noun


def test_a_candidate_whose_own_comparison_is_broken_gets_no_traffic(folder, context, tmp_path):
    broken = _broken(folder, tmp_path)
    outcome = canary(folder, broken, context)
    assert outcome.is_refused
    assert (outcome.noun.action, outcome.noun.requests) == ("roll-back", 0)
    assert "NaN" in outcome.noun.reason
    with pytest.raises(NotFoundError):
        rollout_status(context=context)
    ignored = canary(
        folder, broken, context, comparison="ignored", steps=[0.5], absolute_failure_tolerance=0.03
    )
    assert ignored.noun.action == "promote"


def test_a_running_service_refuses_its_candidate_by_the_comparison_in_it(folder, context, tmp_path):
    broken = _broken(folder, tmp_path)
    with spawn_server(
        folder / "baseline", workspace=context.workspace, name="watched", candidate=broken,
        candidate_weight=0.0,
    ):  # fmt: skip
        outcome = watch_rollout("watched", context=context)
    assert outcome.noun.action == "roll-back"
    assert outcome.noun.candidate == Bundle.open(broken).digest


def _broken(folder, tmp_path):
    comparison = ModelComparison(
        parent_digest=Bundle.open(folder / "baseline").digest, data_digest="",
        metric="accuracy_drop", drop=0.0, drop_upper=0.0, budget=0.01, verdict="proven",
        n_rows=10, lost_rows=2,
    )  # fmt: skip
    made = derive_bundle(
        Bundle.open(folder / "equal"), tmp_path / "broken", made_by="quantization-for-inference",
        change="test", comparison=comparison,
    )  # fmt: skip
    return made.path


@pytest.mark.parametrize(
    ("candidate", "guard"), [({"factor": 0.4}, "quality"), ({"is_log": True}, "errors")]
)
def test_a_regressor_that_is_off_or_gives_no_numbers_is_rolled_back(
    tmp_path, context, candidate, guard
):
    price_bundle(tmp_path / "baseline")
    price_bundle(tmp_path / "candidate", **candidate)
    prices = str(prices_file(tmp_path / "prices.parquet"))
    outcome = roll_out(
        tmp_path / "baseline", tmp_path / "candidate", prices,
        settings={"guardrails": [guard]}, context=context,
    )  # fmt: skip
    assert outcome.noun.action == "roll-back"
    assert outcome.noun.reason.startswith(guard)


# Live traffic on a running service


class Users:
    """Sends requests to a service from a thread until the block ends."""

    def __init__(self, client, rows):
        self._client, self._rows, self._is_over = client, rows, threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self):
        index = 0
        while not self._is_over.is_set():
            try:
                self._client.infer({"x": self._rows[index % len(self._rows)][None]})
            except FairleadError:
                # The failing candidate answers with an error; users go on.
                continue
            finally:
                time.sleep(0.001)
            index += 1
        self._client.close()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        self._thread.join()


def share_of_candidate(server):
    with closing(server.client()) as client:
        return client.traffic().weights["candidate"]


def feature_rows():
    import numpy as np

    return np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def shop(folder, tmp_path_factory):
    """A running service with an equal candidate, shared by the tests below."""
    home = Context.open(home=tmp_path_factory.mktemp("shop"))
    with spawn_server(
        folder / "baseline", workspace=home.workspace, name="shop",
        candidate=folder / "equal", candidate_weight=0.0,
    ) as server:  # fmt: skip
        yield server, home


def test_a_running_service_promotes_its_candidate_on_live_traffic(shop):
    server, home = shop
    with Users(server.client(), feature_rows()):
        outcome = watch_rollout(
            "shop", context=home,
            settings={"guardrails": ["errors"], "check_seconds": 0.1, "steps": [0.5]},
        )  # fmt: skip
    assert outcome.noun.action == "promote"
    assert share_of_candidate(server) == 1.0


def test_a_running_service_takes_all_traffic_from_a_crashing_candidate(folder, context):
    with spawn_server(
        folder / "baseline", workspace=context.workspace, name="shop",
        candidate=folder / "failing", candidate_weight=0.0,
    ) as server:  # fmt: skip
        with Users(server.client(), feature_rows()):
            outcome = watch_rollout(
                "shop", context=context, settings={"check_seconds": 0.1, "max_seconds": 60}
            )
        assert outcome.noun.action == "roll-back"
        assert share_of_candidate(server) == 0.0


def start_watch(server, home):
    if (home.workspace.root / "rollouts" / "shop.json").exists():
        abort_rollout("shop", context=home)
    words = [sys.executable, "-m", "fairlead", "serve", "rollout", "canary", "--service", "shop"]
    env = {**os.environ, "FAIRLEAD_HOME": str(home.workspace.root)}
    watch = subprocess.Popen(words, env=env, stderr=subprocess.DEVNULL)
    wait_for(lambda: share_of_candidate(server) == pytest.approx(0.1))
    return watch


def test_a_killed_watch_is_seen_and_ended(shop):
    server, home = shop
    watch = start_watch(server, home)
    watch.send_signal(signal.SIGKILL)
    watch.wait()
    assert share_of_candidate(server) == pytest.approx(0.1)
    report = rollout_status("shop", context=home).report
    assert "nobody watches" in report.findings[0].text
    abort_rollout("shop", context=home)
    assert share_of_candidate(server) == 0.0
    assert rollout_status("shop", context=home).noun.status == "aborted"


def test_a_terminated_watch_gives_the_traffic_back(shop):
    server, home = shop
    watch = start_watch(server, home)
    watch.terminate()
    assert watch.wait(timeout=20) == 130
    assert share_of_candidate(server) == 0.0


def test_a_server_that_dies_is_said_clearly(folder, context):
    with spawn_server(
        folder / "baseline", workspace=context.workspace, name="shop",
        candidate=folder / "equal", candidate_weight=0.0,
    ) as server:  # fmt: skip
        killer = threading.Timer(1.0, server.process.kill)
        killer.start()
        with pytest.raises(EndpointError, match="lost during the rollout"):
            watch_rollout("shop", context=context, settings={"check_seconds": 0.1})
        killer.join()
    assert abort_rollout("shop", context=context).noun.status == "aborted"


def wait_for(is_true, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# Input that does not fit


def test_bundles_with_other_inputs_are_refused(folder, context, tmp_path):
    text_bundle(tmp_path / "people")
    with pytest.raises(SignatureError, match="takes"):
        roll_out(
            folder / "baseline", tmp_path / "people", str(folder / "rows.parquet"), context=context
        )


def test_a_bundle_is_not_rolled_out_against_itself(folder, context):
    with pytest.raises(UsageError, match="same bundle"):
        canary(folder, "baseline", context)


def test_a_label_column_that_is_not_there_is_refused(folder, context):
    with pytest.raises(DataError):
        roll_out(
            folder / "baseline", folder / "equal", str(folder / "rows.parquet"), labels="nope",
            context=context,
        )  # fmt: skip


def test_an_unknown_service_is_refused(context):
    with pytest.raises(NotFoundError, match="does not run"):
        watch_rollout("nobody", context=context)
    with pytest.raises(NotFoundError, match="no rollout"):
        rollout_status(context=context)
    with pytest.raises(NotFoundError, match="no rollout"):
        abort_rollout("nobody", context=context)


# The command line


def test_the_command_rolls_back_with_exit_code_1_and_json(folder, cli):
    done = cli(
        "serve", "rollout", "canary", folder / "baseline", folder / "failing", "--data",
        folder / "rows.parquet", "--labels", "kind", "--set", "guardrails=[\"errors\"]",
        "--steps", "0.2,0.5", "--json", check=1,
    )  # fmt: skip
    assert done.json["details"]["decision"]["action"] == "roll-back"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["canary"], "two bundles and --data, or --service"),
        (["canary", "a", "b", "--service", "x"], "cannot be given with it"),
        (["canary", "--service", "x", "--steps", "a,b"], "not a list of numbers"),
        (["canary", "--service", "x", "--set", "alpha"], "has no value"),
        (["canary", "--service", "x", "--set", "nonsense=1"], "nonsense"),
        (["canary", "--service", "x", "--alpha", "3"], "alpha"),
        (["canary", "--service", "../x"], "cannot name a service"),
        (["promote", "--service", "x"], "no rollout"),
        (["status"], "no rollout"),
    ],
)
def test_wrong_usage_ends_with_a_hint_and_exit_code_2(words, said, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "rollout", *words])
    signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert "hint:" in told
