"""Tracking: what a run was made of, and names for the models that came out of it."""

from fairlead.mlops.tracking.card import CARD
from fairlead.mlops.tracking.comparison import compare_runs
from fairlead.mlops.tracking.config import TrackingConfig
from fairlead.mlops.tracking.log import RunLog
from fairlead.mlops.tracking.recording import Recording, recording
from fairlead.mlops.tracking.registry import (
    delete_alias,
    list_versions,
    read_version,
    register,
    resolve,
    set_alias,
    show_version,
)
from fairlead.mlops.tracking.runs import list_runs, read_points, read_run
from fairlead.mlops.tracking.skill import report_run, track

__all__ = [
    "CARD",
    "Recording",
    "RunLog",
    "TrackingConfig",
    "compare_runs",
    "delete_alias",
    "list_runs",
    "list_versions",
    "read_points",
    "read_run",
    "read_version",
    "recording",
    "register",
    "report_run",
    "resolve",
    "set_alias",
    "show_version",
    "track",
]
