"""The only way in: `pack`, ten verbs, `ask`, `plan` and `follow`.

The names below load on first use, so that asking a question does not import ten skills.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from fairlead.api.container import ContainerChoices, write_container, write_kubernetes
    from fairlead.api.context import Context
    from fairlead.api.edge import export_edge
    from fairlead.api.following import follow
    from fairlead.api.observing import diagnose, monitor
    from fairlead.api.optimizing import compress, quantize, tune
    from fairlead.api.optimizing_auto import optimize_auto
    from fairlead.api.packing import pack
    from fairlead.api.pipelines import run_pipeline
    from fairlead.api.plan_file import read_plan, write_plan
    from fairlead.api.planning import plan
    from fairlead.api.releasing import release
    from fairlead.api.rollout import roll_out
    from fairlead.api.routing import ask
    from fairlead.api.scaling import load_test, scale
    from fairlead.api.serving import score_batch, serve
    from fairlead.api.tracking import list_runs, register, resolve, track, tracked
    from fairlead.mlops.pipelines import PipelineStep

__all__ = [
    "ContainerChoices",
    "Context",
    "PipelineStep",
    "ask",
    "compress",
    "diagnose",
    "export_edge",
    "follow",
    "list_runs",
    "load_test",
    "monitor",
    "optimize_auto",
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
    "write_container",
    "write_kubernetes",
    "write_plan",
]

_HOMES: Final = {
    "container": ("ContainerChoices", "write_container", "write_kubernetes"),
    "context": ("Context",),
    "edge": ("export_edge",),
    "following": ("follow",),
    "observing": ("diagnose", "monitor"),
    "optimizing": ("compress", "quantize", "tune"),
    "optimizing_auto": ("optimize_auto",),
    "packing": ("pack",),
    "pipelines": ("PipelineStep", "run_pipeline"),
    "plan_file": ("read_plan", "write_plan"),
    "planning": ("plan",),
    "releasing": ("release",),
    "rollout": ("roll_out",),
    "routing": ("ask",),
    "scaling": ("load_test", "scale"),
    "serving": ("score_batch", "serve"),
    "tracking": ("list_runs", "register", "resolve", "track", "tracked"),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (the types are declared above)
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'fairlead.api' has no attribute {name!r}")
    found = getattr(import_module(f"fairlead.api.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
