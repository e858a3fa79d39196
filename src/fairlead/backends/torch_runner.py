"""torch programs that ONNX cannot express, executed by torch itself."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.core.bundle import RuntimeSettings
from fairlead.core.dataset import Array
from fairlead.core.errors import ModelError, UntrustedError
from fairlead.core.extras import requires
from fairlead.core.ports import Feeds
from fairlead.core.signature import Signature, conform

__all__ = ["TORCH_SUFFIXES", "TorchRunner", "load_torch"]

TORCH_SUFFIXES = frozenset({".pt", ".pt2"})
"""TorchScript, and programs of `torch.export`."""
_TUNE = "tune again on this machine with `fairlead optimize tune`"
_FREE_SIZE = 4
"""Size of free dimensions, beyond the rows, of the batch that a compiled program is tried on."""
_TRIED_ROWS = (3, 1)
"""torch compiles for one row apart from more."""


def load_torch(path: Path, *, trust: bool) -> Any:  # noqa: ANN401 (untyped library)
    """Load TorchScript or an exported program as something to call with tensors.

    Raises:
        UntrustedError: `trust` is off; torch may run code that these files hold.
        ModelError: torch cannot load it.
        MissingExtraError: torch is not installed.
    """
    if not trust:
        raise UntrustedError(
            f"{path} is loaded by torch, which may run code that it holds",
            hint="add --trust if you know where the file comes from, or export it as ONNX",
        )
    with requires("torch", needed_by="running a torch program"):
        torch = importlib.import_module("torch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == ".pt2":
                return torch.export.load(str(path)).module()
            return torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as exc:
        raise ModelError(
            f"torch cannot load {path.name}: {_first_line(exc)}",
            hint="write it again with torch.jit.save or torch.export.save",
        ) from exc


class TorchRunner:
    """A torch program in memory; implements the port `Runner`."""

    def __init__(
        self,
        module: Any,  # noqa: ANN401
        signature: Signature,
        settings: RuntimeSettings | None = None,
    ) -> None:
        """Put a signature before a loaded program, and compile it if the settings say so.

        Args:
            module: What `load_torch` gave.
            signature: What it takes and gives.
            settings: Threads, and whether to compile; as torch comes when None.

        Raises:
            ModelError: It shall be compiled, and cannot be.
        """
        self._module = module
        self._signature = signature
        self._torch = importlib.import_module("torch")
        self._threads = None if settings is None else settings.intra_op_threads
        if settings is not None and settings.torch_compile:
            self._compile()

    def _compile(self) -> None:
        """Compile, and run zeros of one row and of more: what fails shall fail here."""
        why = _no_compiling(self._torch, self._module)
        if why:
            raise ModelError(f"the program cannot be compiled: {why}", hint=_TUNE)
        self._module = self._torch.compile(self._module, dynamic=True)
        fixed = any(spec.shape and spec.shape[0] > 0 for spec in self._signature.inputs)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for rows in _TRIED_ROWS[:1] if fixed else _TRIED_ROWS:
                    self.run({
                        spec.name: np.zeros(_filled(spec.shape, rows), spec.dtype)
                        for spec in self._signature.inputs
                    })  # fmt: skip
        except ModelError as exc:
            raise ModelError(
                f"the program cannot be compiled: {exc.message.partition(': ')[2]}", hint=_TUNE
            ) from exc

    @property
    def signature(self) -> Signature:
        """Names, dtypes and shapes, batch dimension first."""
        return self._signature

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Execute the program on one batch.

        Raises:
            SignatureError: An input is missing or of the wrong dtype or shape.
            ModelError: The program failed on this input.
        """
        ready = conform(feeds, self._signature)
        # torch takes no memory that it may not write to.
        tensors = [
            self._torch.from_numpy(np.array(ready[spec.name], order="C"))
            for spec in self._signature.inputs
        ]
        # How many threads work is a matter of the calling thread.
        if self._threads is not None and self._torch.get_num_threads() != self._threads:
            self._torch.set_num_threads(self._threads)
        try:
            with self._torch.inference_mode():
                answer = self._module(*tensors)
        except Exception as exc:
            raise ModelError(
                f"the torch program failed on a batch: {_first_line(exc)}",
                hint="check the values and the shapes of the batch",
            ) from exc
        return {name: _as_array(value) for name, value in _named(answer).items()}

    def close(self) -> None:
        """Free the program."""
        self._module = None


def _no_compiling(torch: Any, module: Any) -> str:  # noqa: ANN401
    """Return why a program cannot be compiled here; empty when it can be tried."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript is not looked into by torch.compile; save it with torch.export"
    try:
        importlib.import_module("torch._inductor.cpp_builder").get_cpp_compiler()
    except Exception as exc:  # noqa: BLE001 (its errors have no common class of their own)
        return f"torch finds no C++ compiler here ({type(exc).__name__})"
    return ""


def _filled(shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    first = shape[0] if shape and shape[0] > 0 else rows
    return (first, *(size if size >= 0 else _FREE_SIZE for size in shape[1:]))


def _named(answer: Any) -> dict[str, Any]:  # noqa: ANN401
    if isinstance(answer, Mapping):
        return {str(name): value for name, value in answer.items()}
    if isinstance(answer, tuple | list):
        return {f"output_{place}": value for place, value in enumerate(answer)}
    return {"output": answer}


def _as_array(value: Any) -> Array:  # noqa: ANN401
    array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    if array.ndim == 0:
        raise ModelError(
            "the torch program gave one number for the whole batch",
            hint="export a module whose outputs have one row per row",
        )
    return array


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
