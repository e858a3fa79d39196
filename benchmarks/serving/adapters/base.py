"""What the benchmark must know of a server to start, reach and judge it."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Model:
    """The model under test, as every adapter gets it.

    Attributes:
        path: ONNX file.
        name: Name in URLs.
        inputs: Input name → (Open Inference datatype, shape without the rows).
        outputs: Output name → the same.
    """

    path: Path
    name: str
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Started:
    """How to run and reach one server.

    Attributes:
        command: Words of the process.
        url: Where requests are posted.
        ready: Answers 200 when the server is ready.
        env: Variables beside the surroundings.
        form: "v2" for an Open Inference body, else the function that makes the body.
    """

    command: list[str]
    url: str
    ready: str
    env: Mapping[str, str] = field(default_factory=dict)


Prepare = Callable[["Adapter", Path, Model, Path, int], Started]


@dataclass(frozen=True)
class Adapter:
    """A server to compare.

    Attributes:
        name: Name in the table.
        requirements: What pip installs into an environment of its own; none: this one.
        prepare: (adapter, python, model, folder, port) → how to start it.
        body: "v2" or "plain" (`{"x": [[...]]}`, for servers with a form of their own).
        can_pause: Whether it bears being stopped by SIGSTOP between its turns.
        environment: Folder name of the environment, shared by variants of one server.
        options: Read by `prepare`.
    """

    name: str
    prepare: Prepare
    requirements: tuple[str, ...] = ()
    body: str = "v2"
    can_pause: bool = True
    environment: str = ""
    options: Mapping[str, object] = field(default_factory=dict)

    def python(self, cache: Path) -> Path:
        """Return the interpreter that has the server, installing it at the first call."""
        if not self.requirements:
            return Path(sys.executable)
        folder = cache / (self.environment or self.name)
        python = folder / "bin" / "python"
        if not (folder / ".ready").exists():
            venv.create(folder, with_pip=True)
            subprocess.run(
                [python, "-m", "pip", "install", "--quiet", *self.requirements], check=True
            )
            (folder / ".ready").touch()
        return python
