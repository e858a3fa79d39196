"""Runs the model of this folder; needs nothing but ONNX Runtime and numpy.

python run.py rows.json              {"rows": [{"a": 1.5, "b": 2}, ...]}
python run.py tensors.json           {"inputs": {"x": [[1.5, 2.0]]}}
python run.py --check                are the files the ones that were exported?
echo '{"rows": [...]}' | python run.py -

from run import EdgeModel
EdgeModel().predict({"x": array})
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

_USAGE = "usage: python run.py FILE.json | - | --check"
_LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


class InputError(ValueError):
    """The input does not fit the model; the message says where and how."""


class EdgeModel:
    """The model of a folder, loaded.

    Attributes:
        about: The content of `model.json`: signature, columns, classes, steps.
    """

    def __init__(self, folder: Any = None, *, threads: int | None = None) -> None:  # noqa: ANN401
        """Load the model.

        Args:
            folder: The exported folder; the one of this file when None.
            threads: CPU threads; what the model was tuned for when None.
        """
        import onnxruntime

        self._folder = Path(folder or Path(__file__).parent)
        self.about: dict[str, Any] = json.loads((self._folder / "model.json").read_text())
        runtime = self.about["runtime"]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads or runtime["intra_op_threads"] or 1
        spinning = "1" if runtime["allow_spinning"] else "0"
        options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        level = _LEVELS[runtime["graph_optimization"]]
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        self._sessions = {
            step["name"]: onnxruntime.InferenceSession(
                str(self._folder / step["model"]), options, providers=["CPUExecutionProvider"]
            )
            for step in self.about["steps"]
            if step["model"]
        }

    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return one array per output, first dimension the rows.

        Raises:
            InputError: An input is missing, unknown, or of the wrong dtype or shape.
        """
        values = {f"request.{name}": array for name, array in self._checked(inputs).items()}
        for step in self.about["steps"]:
            arrays = {name: _gathered(sources, values) for name, sources in step["inputs"].items()}
            for name, array in self._run_step(step, arrays).items():
                values[f"{step['name']}.{name}"] = array
        return {name: values[source] for name, source in self.about["outputs"].items()}

    def predict_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return one answer per row: the prediction, and the score of each class.

        Raises:
            InputError: A column is missing or unknown, or a value cannot be read.
        """
        outputs = self.predict(self._from_rows(rows))
        return [self._answer(outputs, row) for row in range(len(rows))]

    def check_files(self) -> list[str]:
        """Return the files that are not what was exported."""
        wrong = []
        for line in (self._folder / "SHA256SUMS").read_text().splitlines():
            digest, name = line.split("  ", 1)
            file = self._folder / name
            found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
            if found != digest:
                wrong.append(name)
        return wrong

    def _run_step(self, step: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
        if not step["model"]:
            return {step["combine"]: _combined(step, list(arrays.values()))}
        session = self._sessions[step["name"]]
        names = [item.name for item in session.get_outputs()]
        wanted = {item.name: item.type for item in session.get_inputs()}
        ready = {n: _cast_for(a, wanted[n]) for n, a in arrays.items()}
        size = step["fixed_rows"]
        if not size:
            return dict(zip(names, session.run(names, ready), strict=True))
        rows = len(next(iter(ready.values())))
        pieces = []
        for start in range(0, rows, size):
            batch = {n: _padded(a[start : start + size], size) for n, a in ready.items()}
            pieces.append(session.run(names, batch))
        joined = [np.concatenate(parts)[:rows] for parts in zip(*pieces, strict=True)]
        return dict(zip(names, joined, strict=True))

    def _checked(self, inputs: dict[str, Any]) -> dict[str, Any]:
        specs = self.about["inputs"]
        unknown = sorted(set(inputs) - {spec["name"] for spec in specs})
        if unknown:
            raise InputError(f"there is no input `{unknown[0]}`; {self._expected()}")
        ready = {}
        for spec in specs:
            name = spec["name"]
            if name not in inputs:
                raise InputError(f"input `{name}` is missing; {self._expected()}")
            ready[name] = _as_tensor(name, inputs[name], spec)
        sizes = {name: len(array) for name, array in ready.items()}
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            raise InputError(f"inputs need one number of rows, at least 1; found {sizes}")
        return ready

    def _expected(self) -> str:
        shown = ", ".join(_shown(spec) for spec in self.about["inputs"])
        return f"the model takes {shown}"

    def _from_rows(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
            raise InputError('`rows` must be a list of objects: {"rows": [{"column": value}]}')
        specs = self.about["inputs"]
        stacked = self.about["feature_columns"] if len(specs) == 1 else []
        names = stacked or [spec["name"] for spec in specs]
        for number, row in enumerate(rows):
            wrong = [n for n in names if n not in row] or [n for n in row if n not in names]
            if wrong and wrong[0] != self.about["label_column"]:
                what = "lacks" if wrong[0] not in row else "has unknown"
                raise InputError(f"row {number} {what} `{wrong[0]}`; the columns are {names}")
        if not stacked:
            return {name: [row[name] for row in rows] for name in names}
        spec = specs[0]
        table = [[row[name] for name in names] for row in rows]
        if len(spec["shape"]) == 1:
            table = [values[0] for values in table]
        return {spec["name"]: table}

    def _answer(self, outputs: dict[str, Any], row: int) -> dict[str, Any]:
        classes = self.about["classes"]
        main, scores = self.about["prediction_output"], self.about["score_output"]
        answer: dict[str, Any] = {}
        for name, array in outputs.items():
            value = array[row]
            if name == scores and np.size(value) == len(classes):
                flat = np.asarray(value).reshape(-1).tolist()
                answer["scores"] = {str(c): v for c, v in zip(classes, flat, strict=True)}
                if name == main:
                    answer["prediction"] = classes[int(np.argmax(flat))]
            else:
                key = "prediction" if name == main else name
                answer[key] = value.tolist() if hasattr(value, "tolist") else value
        return answer


def _shown(spec: dict[str, Any]) -> str:
    sizes = ", ".join("?" if size == -1 else str(size) for size in spec["shape"])
    return f"{spec['name']}: {spec['dtype']}[{sizes}]"


def _as_tensor(name: str, value: Any, spec: dict[str, Any]) -> Any:  # noqa: ANN401
    is_text = spec["dtype"] == "string"
    try:
        array = np.asarray(value, dtype=object if is_text else None)
        if not is_text and array.dtype.kind not in "biuf":
            raise InputError(f"input `{name}` holds {array.dtype.name}, not numbers")
        if not is_text and "float" not in spec["dtype"] and not np.all(array == np.round(array)):
            raise InputError(f"input `{name}` holds fractions; it takes {_shown(spec)}")
        ready = array if is_text else array.astype(spec["dtype"])
    except InputError:
        raise
    except (ValueError, TypeError) as exc:
        raise InputError(f"input `{name}` cannot be read as {_shown(spec)}: {exc}") from exc
    want = spec["shape"]
    sizes = zip(want, ready.shape, strict=False)
    if ready.ndim != len(want) or any(w not in (-1, g) for w, g in sizes):
        raise InputError(f"input `{name}` has shape {list(ready.shape)}; it takes {_shown(spec)}")
    if is_text and not all(isinstance(item, str) for item in ready.reshape(-1)):
        raise InputError(f"input `{name}` holds values that are no text")
    return ready


def _cast_for(array: Any, kind: str) -> Any:  # noqa: ANN401
    names = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(string)": "object"}
    return array.astype(names.get(kind, kind.removeprefix("tensor(").removesuffix(")")))


def _padded(array: Any, size: int) -> Any:  # noqa: ANN401
    gap = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], gap, axis=0)]) if gap else array


def _gathered(sources: list[str], values: dict[str, Any]) -> Any:  # noqa: ANN401
    if len(sources) == 1:
        return values[sources[0]]
    return np.stack([values[s].reshape(len(values[s])) for s in sources], axis=1)


def _combined(step: dict[str, Any], arrays: list[Any]) -> Any:  # noqa: ANN401
    if step["combine"] == "argmax":
        best = np.argmax(arrays[0].reshape(len(arrays[0]), -1), axis=1)
        return np.array(step["labels"])[best] if step["labels"] else best
    shares = np.asarray(step["weights"] or np.ones(len(arrays)), np.float64)
    if step["combine"] == "mean":
        total = sum(a * s for a, s in zip(arrays, shares, strict=True))
        return np.asarray(total / shares.sum(), arrays[0].dtype)
    votes = np.stack([array.reshape(len(array)) for array in arrays])
    known = np.unique(votes)
    counts = np.stack([(shares[:, None] * (votes == label)).sum(axis=0) for label in known])
    return known[np.argmax(counts, axis=0)]


def main(words: list[str]) -> int:
    """Answer one file of rows or tensors; return the exit code."""
    if len(words) != 1 or words[0] in {"-h", "--help"}:
        sys.stderr.write(f"{_USAGE}\n")
        return 2
    try:
        model = EdgeModel()
        if words[0] == "--check":
            wrong = model.check_files()
            sys.stderr.write(f"changed: {', '.join(wrong)}\n" if wrong else "all files are whole\n")
            return 1 if wrong else 0
        text = sys.stdin.read() if words[0] == "-" else Path(words[0]).read_text()
        document = json.loads(text)
        if isinstance(document, dict) and "rows" in document:
            answer: Any = {"predictions": model.predict_rows(document["rows"])}
        elif isinstance(document, dict) and isinstance(document.get("inputs"), dict):
            outputs = model.predict(document["inputs"])
            answer = {"outputs": {name: np.asarray(a).tolist() for name, a in outputs.items()}}
        else:
            raise InputError('send {"rows": [...]} or {"inputs": {"name": [...]}}')
    except (InputError, OSError, json.JSONDecodeError) as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2
    sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
