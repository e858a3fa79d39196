"""Opens the dataplanes of a service: a bundle, and beside the first one its candidate."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from fairlead.core.bundle import Bundle
from fairlead.core.endpoint import TrafficSplit
from fairlead.serve.inference.arms import Arm, check_same_inputs, open_arm
from fairlead.serve.inference.cache import ResponseCache
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.dataplane import Dataplane
from fairlead.serve.inference.served import Observer
from fairlead.serve.inference.traffic import Traffic

__all__ = ["PlaneOpener"]


class PlaneOpener:
    """Loads bundles as dataplanes that all are observed and configured alike."""

    def __init__(
        self,
        config: ServingConfig,
        observers: Callable[[str], Sequence[Observer]],
        *,
        cores: int,
        trust: bool = False,
        default_model: str = "",
        candidate: Bundle | None = None,
    ) -> None:
        """Prepare to open.

        Args:
            config: Settings of serving.
            observers: Returns who is told of the requests of a model.
            cores: CPU cores that a dataplane may use.
            trust: Whether code that came with a model may run.
            default_model: The model that the candidate stands beside.
            candidate: A second bundle that shares the default model's traffic, or None.
        """
        self._config = config
        self._observers = observers
        self._cores = cores
        self._trust = trust
        self._default_model = default_model
        self._candidate = candidate
        share = 0.0 if candidate is None else config.candidate_weight
        weights = {"baseline": 1.0 - share} | ({} if candidate is None else {"candidate": share})
        self.traffic = Traffic(tuple(weights), TrafficSplit(weights=weights), random.Random())  # noqa: S311
        """Shares the default model's requests; it outlives a reload of the model."""
        n_bytes = int(config.response_cache_mb * (1 << 20)) // config.workers
        self.cache = ResponseCache(n_bytes) if n_bytes else None
        """Answers that were given before, of all models together; None when it is off."""

    def __call__(self, model: str, bundle: Bundle) -> Dataplane:
        """Load and warm a bundle under the name of a model; blocks.

        Raises:
            SignatureError: The candidate takes other inputs than the bundle.
            ModelError: It cannot be loaded.
            UntrustedError: Loading would run code that nobody approved.
        """
        bundles = {"baseline": bundle}
        if self._candidate is not None and model == self._default_model:
            check_same_inputs(bundle, self._candidate)
            bundles["candidate"] = self._candidate
        cores = max(1, self._cores // len(bundles))
        arms: dict[str, Arm] = {}
        with ExitStack() as stack:
            for name, one in bundles.items():
                arms[name] = open_arm(
                    name, one, self._config, cores=cores, trust=self._trust, model=model
                )
                stack.callback(arms[name].close)
            plane = Dataplane(
                model,
                arms,
                self.traffic if model == self._default_model else _undivided(),
                timeout_s=self._config.request_timeout_s,
                observers=self._observers(model),
                cache=self.cache,
            )
            stack.pop_all()
        return plane


def _undivided() -> Traffic:
    return Traffic(("baseline",), TrafficSplit(weights={"baseline": 1.0}))
