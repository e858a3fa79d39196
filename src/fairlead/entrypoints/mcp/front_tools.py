"""The tools of the front door: ask, answer, plan, run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from fairlead.core.errors import PlanError, WorkspaceError
from fairlead.core.files import user_path
from fairlead.core.plan import Plan
from fairlead.entrypoints.mcp.arguments import (
    AnswerArguments,
    AskArguments,
    PlanArguments,
    RunArguments,
    RunPipelineArguments,
)
from fairlead.entrypoints.mcp.desk import Desk, Dialogue
from fairlead.entrypoints.mcp.tool import Document, Tool
from fairlead.router import Question

__all__ = ["FRONT_TOOLS"]


def ask(arguments: AskArguments, desk: Desk) -> Document:
    """Answer a problem, or hand back the one question that decides it."""
    return _turn(arguments.text, (), arguments, desk)


def answer(arguments: AnswerArguments, desk: Desk) -> Document:
    """Answer an open question."""
    dialogue = desk.find(arguments.dialogue)
    said = (*dialogue.question.answers, arguments.option)
    return _turn(dialogue.question.asked, said, dialogue.given, desk)


def _turn(text: str, said: Sequence[str], given: AskArguments, desk: Desk) -> Document:
    from fairlead.api.feedback import remember
    from fairlead.api.routing import answer_document, consult
    from fairlead.api.source_rows import Sources

    sources = Sources(**given.model_dump(exclude={"text", "measure"}))
    context = desk.context()
    result = consult(text, answers=said, sources=sources, measure=given.measure, context=context)
    with suppress(WorkspaceError):
        # An answer is worth giving even where it cannot be remembered.
        remember(result.answer, context)
    document = answer_document(result)
    if isinstance(result.answer, Question):
        document["dialogue"] = desk.keep(Dialogue(result.answer, given))
    return document


def plan(arguments: PlanArguments, desk: Desk) -> Document:
    """Bind a problem to steps and write the plan."""
    from fairlead.api import plan as make_plan
    from fairlead.api import write_plan

    path = user_path(arguments.output)
    wanted = arguments.model_dump(exclude={"text", "output"})
    made = make_plan(arguments.text, **wanted, context=desk.context())
    write_plan(made, path)
    return {"path": str(path.resolve()), "plan": made.model_dump(mode="json")}


def run(arguments: RunArguments, desk: Desk) -> Document:
    """Run a plan from disk."""
    from fairlead.api import read_plan

    return _follow(read_plan(user_path(arguments.path)), desk, fresh=arguments.fresh)


def run_pipeline(arguments: RunPipelineArguments, desk: Desk) -> Document:
    """Run a plan given in place."""
    return _follow(arguments.plan, desk, fresh=arguments.fresh)


def _follow(made: Plan, desk: Desk, *, fresh: bool) -> Document:
    from fairlead.api.following import follow
    from fairlead.entrypoints.render.run_report import write_reports

    if not made.steps:
        raise PlanError("the plan has no steps", hint="make it again with the tool `plan`")
    context = desk.context()
    outcome = write_reports(follow(made, fresh=fresh, context=context), context.workspace)
    report = outcome.report.model_dump(mode="json", exclude={"plots"})
    exclude = {"results": {"__all__": {"report"}}}
    return {"run": outcome.noun.model_dump(mode="json", exclude=exclude), **report}


FRONT_TOOLS: Final = (
    Tool(
        "ask",
        "Which production skill does this problem need?",
        "Start here. Give the user's own words about a trained model in production (slow, large, "
        "costly, to be deployed, released, scaled, tracked, automated, monitored, or wrong). "
        "Returns a route (skills in the order of work), one question with options, or a redirect "
        "to whoever owns the problem. Measurements settle questions: name model, data or url, and "
        "set measure to take them now.",
        AskArguments,
        ask,
        is_read_only=True,
        is_quick=True,
    ),
    Tool(
        "answer",
        "Answer the router's question",
        "Continue the dialogue that `ask` began: give the option that the user chose, and get the "
        "route, the next question, or a redirect.",
        AnswerArguments,
        answer,
        is_read_only=True,
        is_quick=True,
    ),
    Tool(
        "plan",
        "Make a plan",
        "Bind a problem to concrete steps on the user's own model and rows, with settings, gates "
        "and expected results, and write it as a TOML file that people can edit. Questions of the "
        "router must be answered in `answers`.",
        PlanArguments,
        plan,
        is_quick=True,
    ),
    Tool(
        "run",
        "Run a plan",
        "Run a plan file step by step. Finished steps are not repeated, a failed gate stops it. "
        "Returns what each step measured and where the report is.",
        RunArguments,
        run,
    ),
    Tool(
        "run_pipeline",
        "Run a plan given in place",
        "Like `run`, for a plan that is given as a document instead of a file: durable, resumable, "
        "stopped by its gates.",
        RunPipelineArguments,
        run_pipeline,
    ),
)
"""In the order in which they are used."""
