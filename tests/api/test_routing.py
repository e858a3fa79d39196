"""`fairlead.ask`: the front door of Python answers as the command line does."""

from __future__ import annotations

import os
from pathlib import Path

import fairlead
from fairlead import router
from fairlead.api.context import Context
from fairlead.core.evidence import Evidence
from fairlead.router import Question

SLOW = "my inference is slow"


def profile(subject: str) -> Evidence:
    return Evidence(
        metric="model_time_share", value=0.9, unit="ratio", method="profile", subject=subject,
        sample_size=100, skill="production-debugging-techniques",
    )  # fmt: skip


def test_words_alone_make_no_workspace() -> None:
    assert fairlead.ask(SLOW).kind == "clarify"
    assert not Path(os.environ["FAIRLEAD_HOME"]).exists()


def test_a_workspace_that_holds_a_measurement_settles_the_question() -> None:
    Context.open().evidence.append([profile("one")])

    route = fairlead.ask(SLOW)

    assert route.kind == "route"
    assert [used.metric for used in route.evidence_used] == ["model_time_share"]


def test_measurements_of_two_models_settle_nothing() -> None:
    Context.open().evidence.append([profile("one"), profile("other")])

    assert fairlead.ask(SLOW).kind == "clarify"


def test_a_workspace_that_is_none_does_not_keep_words_from_an_answer() -> None:
    home = Path(os.environ["FAIRLEAD_HOME"])
    home.mkdir(parents=True)
    (home / "router").write_text("a file where a folder belongs")

    assert fairlead.ask(SLOW).kind == "clarify"


def test_evidence_that_is_handed_over_settles_the_question() -> None:
    question = fairlead.ask("my model is too slow")
    settled = fairlead.ask("my model is too slow", evidence=[profile("one")])

    assert isinstance(question, Question)
    assert question.answer("inference").kind == "clarify"
    assert [used.settled for used in settled.evidence_used] == [
        "speed-inference-or-training",
        "model-or-infrastructure",
    ]


def test_the_data_of_the_router_stays_small() -> None:
    folder = Path(router.__file__).parent / "data"

    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 30_000_000
