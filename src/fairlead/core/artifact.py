"""A trained model as it was handed over: a reference that can be resolved, and its format."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from fairlead.core.errors import ModelError, NotFoundError
from fairlead.core.files import digest_bytes, digest_file, digest_tree, user_path
from fairlead.core.values import Value

__all__ = ["Artifact", "ArtifactFormat"]

ArtifactFormat = Literal[
    "onnx",
    "skops",
    "xgboost",
    "lightgbm",
    "torch-export",
    "torchscript",
    "import-string",
    "mlflow",
    "bundle",
    "ensemble",
]

_SUFFIXES: dict[str, ArtifactFormat] = {
    ".onnx": "onnx",
    ".skops": "skops",
    ".ubj": "xgboost",
    ".xgb": "xgboost",
    ".lgb": "lightgbm",
    ".pt2": "torch-export",
    ".toml": "ensemble",
}
_BUNDLE_FILES = ("bundle.json", "digests.json")
_PICKLES = {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".dill"}
_FORMATS_HINT = (
    "give .onnx, .skops, an XGBoost file (.ubj, .json, .xgb), a LightGBM file (.txt, .lgb), "
    "a torch export (.pt2), TorchScript (.pt), an MLflow model directory, a bundle, "
    "module:attribute, file.py:attribute, or an ensemble (.toml)"
)


class Artifact(Value):
    """A trained model as a file, a directory or an import string; nothing is loaded yet."""

    reference: str
    """What the user wrote."""
    format: ArtifactFormat
    path: str | None
    """Absolute path; None for import strings."""
    digest: str
    """`sha256:…` of the file, of the sorted file digests of a directory, or of the string."""
    size_bytes: int

    @classmethod
    def from_reference(cls, reference: str) -> Artifact:
        """Resolve what the user wrote and tell its format from suffix and first bytes.

        Raises:
            NotFoundError: There is no such file or directory.
            ModelError: The file is empty, a pickle, or of no known format.
        """
        path = user_path(reference)
        if not reference.strip():
            raise NotFoundError("the name of the model is empty", hint=_FORMATS_HINT)
        if path.is_dir():
            return _from_directory(reference, path)
        if path.is_file():
            return _from_file(reference, path)
        where = reference.rpartition(":")[0]
        if where.endswith(".py") and user_path(where).is_file():
            return _from_code(reference, user_path(where))
        if where and "/" not in where:
            return cls(
                reference=reference,
                format="import-string",
                path=None,
                digest=digest_bytes(reference.encode()),
                size_bytes=0,
            )
        raise NotFoundError(f"there is no model at {reference}", hint=_FORMATS_HINT)


def _from_code(reference: str, file: Path) -> Artifact:
    return Artifact(
        reference=reference,
        format="import-string",
        path=None,
        digest=digest_file(file),
        size_bytes=file.stat().st_size,
    )


def _from_directory(reference: str, path: Path) -> Artifact:
    if not (path / "MLmodel").is_file():
        raise ModelError(
            f"{reference} is a directory without an MLmodel file, so it is not an MLflow model",
            hint=_FORMATS_HINT,
        )
    # A bundle that lost one of its own files is a broken bundle, not another model.
    is_bundle = any((path / "fairlead" / name).is_file() for name in _BUNDLE_FILES)
    digests = digest_tree(path)
    return Artifact(
        reference=reference,
        format="bundle" if is_bundle else "mlflow",
        path=str(path.resolve()),
        digest=digest_bytes(repr(sorted(digests.items())).encode()),
        size_bytes=sum((path / name).stat().st_size for name in digests),
    )


def _from_file(reference: str, path: Path) -> Artifact:
    size = path.stat().st_size
    if size == 0:
        raise ModelError(f"{reference} is empty", hint="export the model again")
    return Artifact(
        reference=reference,
        format=_detect(reference, path),
        path=str(path.resolve()),
        digest=digest_file(path),
        size_bytes=size,
    )


def _detect(reference: str, path: Path) -> ArtifactFormat:
    suffix = path.suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    with path.open("rb") as file:
        head = file.read(256)
    if suffix == ".json" and b"learner" in head:
        return "xgboost"
    if suffix == ".txt" and head.startswith(b"tree"):
        return "lightgbm"
    if suffix == ".pt" and _is_torchscript(path):
        return "torchscript"
    if suffix in _PICKLES or head[:1] == b"\x80" or _is_torch_zip(path):
        raise ModelError(
            f"{reference} is a pickle, which can run any code when it is loaded",
            hint="save it in skops format (scikit-learn), with torch.export (torch) or as ONNX",
        )
    raise ModelError(
        f"the format of {reference} is not known: suffix {suffix or 'none'}, "
        f"first bytes {head[:8]!r}",
        hint=_FORMATS_HINT,
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any("/code/" in name for name in names) and any(
        name.endswith("constants.pkl") for name in names
    )


def _is_torch_zip(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("data.pkl") for name in archive.namelist())
