"""Small nouns: evidence, reports, profiles, units, extras, values."""

import importlib
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from pydantic import Field, ValidationError

from fairlead.core.dataset import Dataset
from fairlead.core.errors import ConfigError, MissingExtraError
from fairlead.core.evidence import Evidence, latest
from fairlead.core.extras import requires
from fairlead.core.ports import Progress, SilentProgress, first_dimension
from fairlead.core.prediction import PredictionBatch
from fairlead.core.profile import ColumnProfile, ReferenceProfile
from fairlead.core.report import Outcome, Report
from fairlead.core.signal import Alert, Signal
from fairlead.core.units import format_bytes, format_duration_s, format_value
from fairlead.core.values import Config


def evidence(metric, value, minutes):
    moment = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    return Evidence(
        metric=metric, value=value, unit="ms", method="m", subject="s", measured_at=moment
    )


def test_the_newest_measurement_is_found():
    kept = [evidence("a", 1, 5), evidence("a", 2, 9), evidence("b", 3, 10)]
    assert latest(kept, "a").value == 2
    assert latest(kept, "c") is None
    assert kept[0].environment["python"]


def test_a_refused_report_refuses():
    report = Report(skill="s", title="t", summary="x", verdict="refused")
    assert Outcome(None, report).is_refused
    assert not Outcome(None, report.model_copy(update={"verdict": "kept"})).is_refused


def test_a_column_of_a_profile_is_found_by_name():
    column = ColumnProfile(name="a", kind="numeric", role="input", n_rows=1, missing_ratio=0)
    profile = ReferenceProfile(n_rows=1, columns=(column,))
    assert profile.column("a") is column
    assert profile.column("b") is None


def test_a_signal_alerts_when_it_has_an_alert():
    signal = Signal(kind="quiet", service="s", bundle_digest="d", n_rows=1, drifted=())
    alert = Alert(name="n", severity="info", text="t", advice="a")
    assert not signal.is_alerting
    assert signal.model_copy(update={"alerts": (alert,)}).is_alerting


def test_a_batch_of_predictions_has_rows():
    batch = PredictionBatch(
        ids=np.array(["1"], dtype=object),
        at=np.array(["2024-01-01"], "datetime64[us]"),
        inputs=Dataset({"a": np.ones(1)}),
        outputs={},
        fields={},
    )
    assert batch.n_rows == 1


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "bytes", "0 B"),
        (1536, "bytes", "1.5 KiB"),
        (5 * 1024**5, "bytes", "5120.0 TiB"),
        (2e-5, "s", "20 µs"),
        (0.02, "s", "20 ms"),
        (3, "s", "3 s"),
        (600, "s", "10.0 min"),
        (1500, "ms", "1.5 s"),
        (1234, "rows", "1,234"),
        (0.98765, "ratio", "0.9877"),
        (12.5, "rps", "12.5 rps"),
    ],
)
def test_numbers_are_written_with_their_unit(value, unit, text):
    assert format_value(value, unit) == text


def test_units_are_chosen_by_size():
    assert format_bytes(1023) == "1023 B"
    assert format_duration_s(119.9) == "120 s"


def test_a_missing_library_becomes_an_install_line():
    with (
        pytest.raises(MissingExtraError, match="needs `no_such_library`") as found,
        requires("serve", needed_by="serving"),
    ):
        importlib.import_module("no_such_library")
    assert found.value.hint == "pip install 'fairlead[serve]'"


def test_a_lost_module_of_our_own_is_no_missing_extra():
    with pytest.raises(ModuleNotFoundError) as found, requires("serve", needed_by="serving"):
        importlib.import_module("fairlead.no_such_module")
    assert not isinstance(found.value, MissingExtraError)


def test_the_first_dimension_is_the_number_of_rows():
    assert first_dimension({"a": np.ones((3, 2))}) == 3
    assert first_dimension([np.ones(4)]) == 4
    assert first_dimension({}) == 1
    assert first_dimension([np.float32(1).reshape(())]) == 1


def test_silent_progress_is_progress():
    progress: Progress = SilentProgress()
    progress.begin("title", total=3)
    progress.advance()
    assert progress.note("text") is None


class Knobs(Config):
    """Settings of a test."""

    size: int = Field(1, ge=1)


def test_settings_are_parsed_or_refused_by_name():
    assert Knobs.parse({"size": 3}).size == 3
    with pytest.raises(ConfigError, match=r"`size`.*found 0") as found:
        Knobs.parse({"size": 0})
    assert "known settings are size" in found.value.hint
    with pytest.raises(ConfigError, match=r"`colour`.*\.\.\."):
        Knobs.parse({"colour": "b" * 100})
    with pytest.raises(ValidationError):
        Knobs().size = 2
