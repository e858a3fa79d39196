"""Plan files: written, read back, and refused when they do not fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.api.plan_file import plan_digest, plan_from_toml, plan_to_toml, read_plan, write_plan
from fairlead.core.errors import NotFoundError, PlanError
from fairlead.core.plan import Plan, PlanStep

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=0, max_size=60)
SETTING = st.one_of(
    st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False), TEXT,
    st.lists(st.integers(-5, 5), max_size=3),
)  # fmt: skip
STEP = st.builds(
    PlanStep,
    id=st.from_regex(r"[a-z][a-z0-9-]{0,12}", fullmatch=True),
    uses=st.sampled_from(["pack", "model-serving-patterns"]),
    why=TEXT,
    settings=st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), SETTING, max_size=4),
    gate=st.sampled_from(["stop", "keep"]),
    gives=TEXT,
)
PLAN = st.builds(
    Plan,
    problem=TEXT,
    answers=st.lists(TEXT, max_size=3).map(tuple),
    route=st.lists(st.sampled_from(["model-serving-patterns"]), max_size=3).map(tuple),
    model=TEXT,
    data=TEXT,
    labels=st.none() | TEXT,
    steps=st.lists(STEP, max_size=4).map(tuple),
)


@given(PLAN)
def test_a_plan_reads_back_as_it_was_written(plan):
    assert plan_from_toml(plan_to_toml(plan)) == plan


@given(PLAN)
def test_comments_and_layout_do_not_change_the_digest(plan):
    text = "# a note\n\n" + plan_to_toml(plan)
    assert plan_digest(plan_from_toml(text)) == plan_digest(plan)


def test_a_file_that_is_not_toml_is_refused_with_its_place(tmp_path):
    (tmp_path / "plan.toml").write_text("steps = = 1")
    with pytest.raises(PlanError, match="line 1") as caught:
        read_plan(tmp_path / "plan.toml")
    assert caught.value.hint


def test_binary_garbage_is_refused(tmp_path):
    (tmp_path / "plan.toml").write_bytes(b"\xff\xfe\x00garbage")
    with pytest.raises(PlanError, match="cannot be read as text"):
        read_plan(tmp_path / "plan.toml")


def test_an_unknown_key_is_named():
    with pytest.raises(PlanError, match="colour"):
        plan_from_toml('problem=""\nroute=[]\nmodel=""\ndata=""\nsteps=[]\ncolour="red"\n')


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFoundError):
        read_plan(tmp_path / "nowhere.toml")


def test_writing_leaves_a_file_that_people_can_read(tmp_path):
    step = PlanStep(id="pack", uses="pack", why="w")
    plan = Plan(problem="x", route=(), model="m", data="d", steps=(step,))
    write_plan(plan, tmp_path / "plan.toml")
    text = (tmp_path / "plan.toml").read_text()
    assert text.startswith("# A plan")
    assert "[[steps]]" in text
