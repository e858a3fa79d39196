"""The only way in: `pack`, ten verbs, `ask`, `plan` and `follow`."""

from __future__ import annotations

from fairlead.api.context import Context
from fairlead.api.following import follow
from fairlead.api.observing import diagnose, monitor
from fairlead.api.optimizing import compress, quantize, tune
from fairlead.api.packing import pack
from fairlead.api.pipelines import run_pipeline
from fairlead.api.plan_file import read_plan, write_plan
from fairlead.api.planning import plan
from fairlead.api.release import release
from fairlead.api.rollout import roll_out
from fairlead.api.routing import ask
from fairlead.api.scaling import load_test, scale
from fairlead.api.serving import score_batch, serve
from fairlead.api.tracking import list_runs, register, resolve, track, tracked
from fairlead.mlops.pipelines import PipelineStep

__all__ = [
    "Context",
    "PipelineStep",
    "ask",
    "compress",
    "diagnose",
    "follow",
    "list_runs",
    "load_test",
    "monitor",
    "pack",
    "plan",
    "quantize",
    "read_plan",
    "register",
    "release",
    "resolve",
    "roll_out",
    "run_pipeline",
    "scale",
    "score_batch",
    "serve",
    "track",
    "tracked",
    "tune",
    "write_plan",
]
