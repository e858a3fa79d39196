"""What tuning found out about padding, obeyed by serving."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.core.dataset import Dataset
from fairlead.optimize.hardware import HardwareConfig, tune
from fairlead.serve.inference.arms import open_arm
from fairlead.serve.inference.config import ServingConfig

from .test_inference_sequences import masked_bundle


@pytest.mark.parametrize("looks_at_padding", [False, True])
def test_a_bundle_tells_serving_how_to_pad(tmp_path, looks_at_padding):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 12, 40)
    mask = (np.arange(32)[None, :] < lengths[:, None]).astype(np.int64)
    rows = Dataset({"ids": rng.integers(1, 90, mask.shape) * mask, "mask": mask})
    start = masked_bundle(tmp_path / "start", looks_at_padding=looks_at_padding)
    quick = HardwareConfig.parse({"time_limit_s": 0.5, "max_batch_size": 4})
    tuned = tune(start, rows, quick, out=tmp_path / "tuned").noun
    assert dict(tuned.runtime.padding) == ({} if looks_at_padding else {"ids": 0.0, "mask": 0.0})
    arm = open_arm("baseline", tuned, ServingConfig(), cores=1)
    assert (arm.queue._padding is None) == looks_at_padding
    arm.close()
