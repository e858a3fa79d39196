"""Pipelines: steps that survive a crash and are never done twice."""

from fairlead.mlops.pipelines.card import CARD
from fairlead.mlops.pipelines.config import PipelineConfig
from fairlead.mlops.pipelines.skill import list_runs, read_run, report_run, run_pipeline
from fairlead.mlops.pipelines.step import PipelineStep

__all__ = [
    "CARD",
    "PipelineConfig",
    "PipelineStep",
    "list_runs",
    "read_run",
    "report_run",
    "run_pipeline",
]
