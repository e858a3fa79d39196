"""What the steps of one plan run share: rows, bundles, and the one server they use."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.api.context import Context
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.errors import PlanError
from fairlead.core.plan import Plan, StepResult

if TYPE_CHECKING:
    from fairlead.backends.endpoint import ServerHandle

__all__ = ["Bench"]


class Bench:
    """The bench that the steps of a plan work on.

    A server is a resource, not a result: after a crash the next step that needs one starts it
    again, from the bundles that the finished steps left behind.
    """

    def __init__(self, plan: Plan, run_id: str, context: Context) -> None:
        self.plan = plan
        self.run_id = run_id
        self.context = context
        self.folder = context.workspace.runs / run_id
        self._handle: ServerHandle | None = None
        self._served = ""

    @cached_property
    def data(self) -> Dataset:
        """The held-back rows of the plan, with labels where they are known."""
        return self.rows(self.plan.data)

    def rows(self, reference: str) -> Dataset:
        """Load rows; labels are taken when the column of the plan is there."""
        from fairlead.backends.datasets import load_dataset

        dataset = load_dataset(reference)
        if self.plan.labels is not None and self.plan.labels in dataset.columns:
            return load_dataset(reference, labels=self.plan.labels)
        return dataset

    def out(self, step: str) -> Path:
        """Return where a step writes its bundle; what a killed attempt left is removed."""
        path = self.folder / step
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def baseline(self, results: Iterable[StepResult]) -> Bundle:
        """Return the bundle that the plan started from.

        Raises:
            PlanError: No step has packed the model yet.
        """
        for result in results:
            if result.bundle is not None:
                return Bundle.open(result.bundle)
        raise PlanError(
            "no step before this one gives a bundle", hint='let the plan begin with `uses = "pack"`'
        )

    def newest(self, results: Iterable[StepResult]) -> Bundle:
        """Return the bundle that the step before left.

        Raises:
            PlanError: No step has packed the model yet.
        """
        paths = [result.bundle for result in results if result.bundle is not None]
        return self.baseline(results) if not paths else Bundle.open(paths[-1])

    def server(self, bundle: Bundle) -> ServerHandle:
        """Return the running server, started when there is none with this bundle."""
        from fairlead.backends.endpoint import spawn_server

        if self._handle is not None and self._served == bundle.digest and self._handle.is_alive:
            return self._handle
        self.close()
        self._handle = spawn_server(
            bundle.path,
            workspace=self.context.workspace,
            name=self.service_name(bundle),
            http_port=self._port(),
            trust=bundle.manifest.needs_trust,
            settings={"log_flush_s": 0.5},
        )
        self._served = bundle.digest
        return self._handle

    @property
    def rolls_out(self) -> bool:
        """Whether a later step of the plan decides between baseline and candidate."""
        return any(step.uses == "deployment-strategies" for step in self.plan.steps)

    def service_name(self, bundle: Bundle) -> str:
        """Return the name of the service of this run; two runs never share one."""
        return f"{bundle.name}-{self.run_id[:8]}"

    def _port(self) -> int:
        for step in self.plan.steps:
            if step.id == "serve":
                return int(step.settings.get("http_port", 0))
        return 0

    def close(self) -> None:
        """Let the server drain and end."""
        if self._handle is not None:
            self._handle.stop()
            self._handle = None
