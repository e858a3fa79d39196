"""Scaling and load balancing: replicas for a rate and a latency objective."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fairlead.core.ports import Progress, SilentProgress
from fairlead.core.report import Outcome
from fairlead.serve.scaling.config import ScalingConfig
from fairlead.serve.scaling.methods import METHODS
from fairlead.serve.scaling.plan import ScalingPlan
from fairlead.serve.scaling.report import plan_evidence, plan_report

__all__ = ["scale"]


def scale(
    service_ms: NDArray[np.float64],
    config: ScalingConfig,
    *,
    subject: str,
    progress: Progress | None = None,
) -> Outcome[ScalingPlan]:
    """Find the least number of replicas that keeps the p99 latency under the SLO.

    Args:
        service_ms: Measured service times of one replica in ms, shape (n,).
        config: Target rate, SLO, balancing policy and how precisely to simulate.
        subject: Digest or name of what was measured.
        progress: Hears how far it is.

    Returns:
        The plan; refused when no number of replicas meets the SLO.

    Raises:
        DataError: There are too few service times, or some are not positive.
    """
    plan, searches = METHODS[config.method](service_ms, config, progress or SilentProgress())
    return Outcome(plan, plan_report(plan, searches, config), plan_evidence(plan, subject))
