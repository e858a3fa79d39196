"""What reads the requests of one arm and writes their answers over HTTP."""

from __future__ import annotations

from fairlead.serve.inference.arms import Arm
from fairlead.serve.inference.http.wire import JSON, field
from fairlead.serve.inference.row_frames import RowFrames
from fairlead.serve.inference.row_reader import RowReader

__all__ = ["ArmForms", "arm_headers"]


def arm_headers(arm: Arm) -> bytes:
    """Return the header lines that say who answered."""
    return field("fairlead-arm", arm.name) + field("fairlead-version", arm.version)


class ArmForms(RowFrames):
    """What reads the requests of one arm, and writes their answers with their header lines."""

    def __init__(self, arm: Arm, model: str) -> None:
        """Prepare for an arm that answers for a model."""
        super().__init__(model, arm.version, arm.signature)
        self.rows = RowReader(arm.signature, arm.intake)
        who = arm_headers(arm)
        self.json_headers = JSON + who
        self.binary_headers = b"content-type: application/octet-stream\r\n" + who
