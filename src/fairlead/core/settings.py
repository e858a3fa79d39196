"""Settings of the process: argument, then FAIRLEAD_*, then file, then default.

This is the only place that reads the environment.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr

from fairlead.core.errors import ConfigError
from fairlead.core.values import Config

__all__ = ["Settings"]

_FILE = "fairlead.toml"
_FOREIGN = {"mlflow_tracking_uri": "MLFLOW_TRACKING_URI"}


class Settings(Config):
    """What holds for the whole process."""

    home: Path = Path(".fairlead")
    """Folder of the workspace. `FAIRLEAD_HOME`"""
    database_url: SecretStr | None = None
    """SQLAlchemy URL of the state; None is SQLite in the workspace. `FAIRLEAD_DATABASE_URL`"""
    mlflow_tracking_uri: str | None = None
    """MLflow server that runs and models are mirrored to. `MLFLOW_TRACKING_URI`"""
    admin_token: SecretStr | None = None
    """Bearer token of a server's control endpoints; None makes one up. `FAIRLEAD_ADMIN_TOKEN`"""
    api_key: SecretStr | None = None
    """Key that commands show servers of other workspaces. `FAIRLEAD_API_KEY`"""
    api_key_file: Path | None = None
    """File that holds that key. `FAIRLEAD_API_KEY_FILE`"""
    token: SecretStr | None = None
    """Bearer token that commands show servers of other workspaces. `FAIRLEAD_TOKEN`"""
    token_file: Path | None = None
    """File that holds that token. `FAIRLEAD_TOKEN_FILE`"""
    ca_file: Path | None = None
    """PEM file of the authorities that such servers are trusted by. `FAIRLEAD_CA_FILE`"""
    cert_file: Path | None = None
    """PEM file of the certificate that commands show them. `FAIRLEAD_CERT_FILE`"""
    cert_key_file: Path | None = None
    """PEM file of its key, when it is not in the same file. `FAIRLEAD_CERT_KEY_FILE`"""
    cpu_limit: int | None = Field(None, ge=1)
    """CPUs to plan for; None asks the machine. `FAIRLEAD_CPU_LIMIT`"""
    record: bool = True
    """Whether the workspace remembers what the router was asked and said. `FAIRLEAD_RECORD`"""

    run_file: Path | None = None
    """Log of the tracked run this process is part of; set by tracking. `FAIRLEAD_RUN_FILE`"""

    @classmethod
    def load(
        cls,
        *,
        environ: Mapping[str, str] | None = None,
        folder: Path | None = None,
        **arguments: Any,  # noqa: ANN401 (validated below)
    ) -> Settings:
        """Read settings from arguments, environment and `fairlead.toml`.

        Args:
            environ: The environment; the process's own when None.
            folder: Where `fairlead.toml` is looked for; the working directory when None.
            **arguments: Settings that win over everything; None means not given.

        Raises:
            ConfigError: A setting is unknown or has a wrong value.
        """
        env = os.environ if environ is None else environ
        merged: dict[str, Any] = _from_file((folder or Path.cwd()) / _FILE)
        for name in cls.model_fields:
            value = env.get(_FOREIGN.get(name, f"FAIRLEAD_{name.upper()}"))
            if value:
                merged[name] = value
        merged.update({name: value for name, value in arguments.items() if value is not None})
        return cls.parse(merged)


def _from_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"{path} is not valid TOML: {exc}", hint="mend the file or remove it"
        ) from exc
