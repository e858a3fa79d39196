"""Settings: argument, then environment, then file, then default."""

from pathlib import Path

import pytest

from fairlead.core.errors import ConfigError, WorkspaceError
from fairlead.core.settings import Settings
from fairlead.core.workspace import Workspace


def load(folder, environ=None, **arguments):
    return Settings.load(environ=environ or {}, folder=folder, **arguments)


def test_defaults_hold_when_nothing_is_said(tmp_path):
    settings = load(tmp_path)
    assert (settings.home, settings.database_url, settings.cpu_limit) == (
        Path(".fairlead"),
        None,
        None,
    )


def test_the_nearer_source_wins(tmp_path):
    (tmp_path / "fairlead.toml").write_text('home = "from-file"\ncpu_limit = 2\n')
    environ = {"FAIRLEAD_HOME": "from-environment", "FAIRLEAD_CPU_LIMIT": ""}
    assert load(tmp_path).home == Path("from-file")
    assert load(tmp_path, environ).home == Path("from-environment")
    assert load(tmp_path, environ, home=Path("argument")).home == Path("argument")
    assert load(tmp_path, environ, home=None).cpu_limit == 2


def test_the_name_that_mlflow_uses_is_read(tmp_path):
    environ = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}
    assert load(tmp_path, environ).mlflow_tracking_uri == "http://127.0.0.1:5000"


def test_the_process_environment_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRLEAD_CPU_LIMIT", "3")
    monkeypatch.chdir(tmp_path)
    assert Settings.load().cpu_limit == 3


def test_unknown_settings_and_wrong_values_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="colour") as found:
        load(tmp_path, colour="blue")
    assert "home" in found.value.hint
    with pytest.raises(ConfigError, match="cpu_limit"):
        load(tmp_path, {"FAIRLEAD_CPU_LIMIT": "many"})
    (tmp_path / "fairlead.toml").write_text("not toml")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(tmp_path)


def test_secrets_are_not_shown(tmp_path):
    settings = load(tmp_path, {"FAIRLEAD_ADMIN_TOKEN": "hunter2"})
    assert "hunter2" not in repr(settings)
    assert settings.admin_token.get_secret_value() == "hunter2"


def test_a_workspace_is_made_where_the_settings_say(tmp_path):
    workspace = Workspace.open(load(tmp_path, home=tmp_path / "w"))
    for folder in (workspace.artifacts, workspace.predictions, workspace.reports, workspace.runs,
                   workspace.services):  # fmt: skip
        assert folder.is_dir()
    assert workspace.database_url == f"sqlite:///{tmp_path / 'w' / 'state.db'}"
    other = load(tmp_path, {"FAIRLEAD_DATABASE_URL": "postgresql://x"}, home=tmp_path / "w")
    assert Workspace.open(other).database_url == "postgresql://x"


def test_a_workspace_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot write the workspace"):
        Workspace.open(load(tmp_path, home=tmp_path / "file" / "w"))
