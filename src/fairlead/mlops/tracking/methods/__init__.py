"""How the code of a run is captured."""

from __future__ import annotations

from fairlead.mlops.tracking.methods.git_snapshot import capture_code

__all__ = ["METHODS"]

METHODS = {"git-snapshot": capture_code}
