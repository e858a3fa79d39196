"""How steps of an ensemble are connected and checked."""

from __future__ import annotations

import pytest

from fairlead.core.ensemble import Flow, StepDraft, check_flow, connect, read_draft, signature_of
from fairlead.core.errors import SignatureError, UsageError
from fairlead.core.signature import TensorSpec


def spec(text):
    name, _, rest = text.partition(":")
    dtype, _, sizes = rest.strip().rstrip("]").partition("[")
    shape = tuple(-1 if size == "?" else int(size) for size in sizes.split(","))
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def flow(**steps):
    return Flow({}, {name: {s.name: s for s in map(spec, outs)} for name, outs in steps.items()})


def step(name="next", **options):
    return StepDraft(name=name, bundle="x", **options)


def test_an_input_takes_the_one_earlier_output_of_its_name():
    made = flow(tokenise=["ids: int64[?,?]"])
    assert connect(made, step(), (spec("ids: int64[?,?]"),)) == {"ids": ("tokenise.ids",)}


def test_an_input_that_nothing_gives_comes_with_the_request():
    made = flow()
    assert connect(made, step(), (spec("x: float32[?,4]"),)) == {"x": ("request.x",)}
    assert str(made.request["x"]) == "x: float32[?, 4]"


def test_two_givers_of_one_name_need_a_choice():
    made = flow(a=["x: float32[?]"], b=["x: float32[?]"])
    with pytest.raises(SignatureError, match="given by a, b"):
        connect(made, step(), (spec("x: float32[?]"),))
    chosen = connect(made, step(inputs={"x": "b.x"}), (spec("x: float32[?]"),))
    assert chosen == {"x": ("b.x",)}


def test_columns_are_put_side_by_side_for_a_model_that_stacks_them():
    made = flow(pre=["a: float64[?]", "b: float64[?]"])
    found = connect(made, step(), (spec("x: float32[?,2]"),), ("a", "b"))
    assert found == {"x": ("pre.a", "pre.b")}


@pytest.mark.parametrize(
    ("given", "wanted", "fits"),
    [
        ("x: int64[?,?]", "x: int64[?,8]", True),
        ("x: int32[?]", "x: float32[?]", True),
        ("x: float64[?]", "x: float32[?]", True),
        ("x: float32[?]", "x: int64[?]", False),
        ("x: string[?]", "x: float32[?]", False),
        ("x: float32[?,7]", "x: float32[?,8]", False),
        ("x: float32[?]", "x: float32[?,1]", False),
    ],
)
def test_types_are_checked_between_steps(given, wanted, fits):
    made = flow(a=[given])
    if fits:
        assert connect(made, step(), (spec(wanted),)) == {"x": ("a.x",)}
    else:
        with pytest.raises(SignatureError, match=r"`next.x` takes .* but `a.x` gives"):
            connect(made, step(), (spec(wanted),))


def test_steps_may_share_an_input_of_the_request_when_they_agree_on_it():
    made = flow()
    connect(made, step("a"), (spec("x: float32[?,4]"),))
    connect(made, step("b"), (spec("x: float32[8,4]"),))
    with pytest.raises(SignatureError, match="an earlier step"):
        connect(made, step("c"), (spec("x: float64[?,4]"),))


def test_a_source_must_exist_before_the_step():
    with pytest.raises(SignatureError, match=r"takes `later.x`"):
        connect(flow(), step(inputs={"x": "later.x"}), (spec("x: float32[?]"),))


def test_an_input_must_exist():
    with pytest.raises(SignatureError, match="no input `y`"):
        connect(flow(), step(inputs={"y": "a.x"}), (spec("x: float32[?]"),))


def test_outputs_are_those_of_the_last_step_or_the_chosen_ones():
    made = flow(a=["x: float32[?,3]"], b=["y: int64[?]"])
    assert check_flow(made, {}, ("a", "b")) == {"y": "b.y"}
    chosen = check_flow(made, {"scores": "a.x"}, ("a", "b"))
    assert str(signature_of(made, chosen).outputs[0]) == "scores: float32[?, 3]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "steps"),
        ("[[steps]]\nname = 'a'\n", "exactly one of"),
        ("[[steps]]\nname = 'a'\nbundle = 'x'\ncode = 'y.py:z'\n", "exactly one of"),
        ("[[steps]]\nname = 'a'\ncombine = 'mean'\n", "exactly one of"),
        ("[[steps]]\nname = 'a'\nbundle = 'x'\n" * 2, "two steps named `a`"),
        ("[[steps]]\nname = 'request'\nbundle = 'x'\n", "stands for the request"),
        ("[[steps]]\nname = 'a b'\nbundle = 'x'\n", "name"),
        ("[[steps]]\nname = 'a'\nbundle = 'x'\nwat = 1\n", "wat"),
        ("steps = [", "cannot be read"),
    ],
)
def test_a_file_that_describes_no_ensemble_is_refused_with_the_reason(tmp_path, text, words):
    (tmp_path / "ensemble.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_draft(tmp_path / "ensemble.toml")
