"""Writes the report of a plan run as a page and as JSON."""

from __future__ import annotations

from fairlead.core.files import write_json, write_text
from fairlead.core.plan import PlanRun
from fairlead.core.report import Outcome, Report
from fairlead.core.workspace import Workspace
from fairlead.entrypoints.render.page import render_page

__all__ = ["write_reports"]


def write_reports(outcome: Outcome[PlanRun], workspace: Workspace) -> Outcome[PlanRun]:
    """Write `reports/<run>.html` and `.json` and add their paths to the report.

    Raises:
        WorkspaceError: The folder cannot be written.
    """
    run = outcome.noun
    parts = [Report.model_validate(result.report) for result in run.results if result.report]
    page = workspace.reports / f"{run.id}.html"
    document = workspace.reports / f"{run.id}.json"
    files = {**outcome.report.files, "report": str(page), "report as JSON": str(document)}
    report = outcome.report.model_copy(update={"files": files})
    write_text(page, render_page(report.title, report.summary, [report, *parts]))
    everything = {
        "run": run.model_dump(mode="json"),
        "report": report.model_dump(mode="json"),
    }
    write_json(document, everything)
    return Outcome(run, report, outcome.evidence)
