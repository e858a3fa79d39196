"""One tree of errors, one table of how they leave."""

from __future__ import annotations

import inspect

import pytest

from fairlead.core import errors
from fairlead.entrypoints.problem import PROBLEMS, problem_of

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.FairleadError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_row_in_the_table(kind):
    assert kind in PROBLEMS


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_drawn_in_the_tree(kind):
    assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_keeps_message_and_hint(kind):
    error = kind("found 3, expected 4", hint="give 4")
    assert (str(error), error.hint) == ("found 3, expected 4", "give 4")


def test_codes_are_unique():
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)


def test_a_refusal_leaves_with_one_and_everything_else_with_two():
    assert problem_of(errors.BudgetError("no", hint="")).exit_code == 1
    assert problem_of(errors.DataError("no", hint="")).exit_code == 2


def test_an_unknown_descendant_leaves_like_its_family():
    class NovelError(errors.DataError):
        pass

    assert problem_of(NovelError("no", hint="")) == PROBLEMS[errors.DataError]
