"""Python classes and functions as models: packed with their code, and run from the bundle."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle
from fairlead.core.errors import (
    IntegrityError,
    ModelCodeError,
    ModelError,
    NotFoundError,
    UntrustedError,
    UsageError,
)
from fairlead.core.ports import StreamingRunner
from tests.backends.pack_models import packed
from tests.backends.python_material import texts, write_code


@pytest.fixture
def code(tmp_path):
    return write_code(tmp_path)


def run(bundle, *rows):
    runner = open_runner(bundle, trust=True)
    try:
        return runner.run({"text": np.array(rows, object)})
    finally:
        runner.close()


def test_a_class_is_packed_with_the_files_it_needs_and_runs_without_the_originals(tmp_path, code):
    outcome = packed(tmp_path, f"{code}:Shout", texts(), include=[tmp_path / "suffix.txt"])
    for name in ("models.py", "words.py", "suffix.txt"):
        (tmp_path / name).unlink()
    bundle = Bundle.open(outcome.noun.path)
    answer = run(bundle, "abc", "d")
    assert answer["loud"].tolist() == ["ABC!", "D!"]
    assert answer["size"].tolist() == [3, 1]
    assert (bundle.manifest.kind, bundle.manifest.entry) == ("python", "models:Shout")
    assert [str(spec) for spec in bundle.signature.outputs] == ["loud: string[?]", "size: int64[?]"]


def test_running_a_bundle_changes_none_of_its_files(tmp_path, code):
    bundle = packed(tmp_path, f"{code}:Later", texts()).noun
    run(bundle, "abc")
    Bundle.open(bundle.path)


def test_the_code_is_covered_by_the_digests(tmp_path, code):
    bundle = packed(tmp_path, f"{code}:Later", texts()).noun
    with (bundle.path / "code" / "words.py").open("a") as file:
        file.write("\nimport os\n")
    with pytest.raises(IntegrityError, match=r"words\.py"):
        Bundle.open(bundle.path)


def test_code_runs_only_with_trust_whatever_the_bundle_says_of_itself(tmp_path, code):
    bundle = packed(tmp_path, f"{code}:Later", texts()).noun
    with pytest.raises(UntrustedError, match="runs its own code"):
        open_runner(bundle)
    manifest = bundle.manifest.model_copy(update={"needs_trust": False})
    lying = Bundle(bundle.path, manifest, bundle.runtime, bundle.scores, bundle.provenance, "")
    with pytest.raises(UntrustedError):
        open_runner(lying)


def test_requirements_are_listed_and_the_standard_library_is_not(tmp_path, code):
    bundle = packed(tmp_path, f"{code}:Later", texts()).noun
    lines = (bundle.path / "requirements.txt").read_text().splitlines()
    assert f"numpy=={np.__version__}" in lines
    assert any(line.startswith("fairlead==") for line in lines)
    assert not any("asyncio" in line or "threading" in line for line in lines)


def test_two_bundles_with_modules_of_one_name_stay_apart(tmp_path):
    bundles = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "words.py").write_text(f"FACTOR = {number}\n")
        (folder / "models.py").write_text(
            "import numpy as np\nfrom words import FACTOR\n"
            "def times(columns):\n"
            "    return {'n': np.array([len(t) * FACTOR for t in columns['text']])}\n"
        )
        bundles.append(packed(folder, f"{folder}/models.py:times", texts()).noun)
    assert [run(bundle, "abc")["n"].tolist() for bundle in bundles] == [[3], [6]]
    assert "words" not in sys.modules


def test_a_module_is_found_in_the_working_directory(tmp_path, code, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle = packed(tmp_path, "models:Later", texts()).noun
    assert run(bundle, "abcd")["prediction"].tolist() == [4]


def test_a_generator_streams_and_its_pieces_are_the_whole_answer(tmp_path, code):
    bundle = packed(tmp_path, f"{code}:Pieces", texts()).noun
    runner = open_runner(bundle, trust=True)
    assert isinstance(runner, StreamingRunner)
    assert runner.is_streaming
    pieces = [p["word"].tolist() for p in runner.stream({"text": np.array(["hi", "yo"], object)})]
    assert pieces == [["h0 ", "y0 "], ["h1 ", "y1 "], ["h2 ", "y2 "]]
    whole = runner.run({"text": np.array(["hi", "yo"], object)})
    assert whole["word"].tolist() == ["h0 h1 h2 ", "y0 y1 y2 "]
    runner.close()


def test_an_async_generator_streams_too_and_arrays_are_joined_along_the_second_axis(tmp_path, code):
    bundle = packed(tmp_path, f"{code}:LaterPieces", texts()).noun
    runner = open_runner(bundle, trust=True)
    pieces = list(runner.stream({"text": np.array(["hi"], object)}))
    assert [piece["ids"].tolist() for piece in pieces] == [[[0, 0]], [[1, 1]]]
    assert runner.run({"text": np.array(["hi"], object)})["ids"].tolist() == [[0, 0, 1, 1]]
    runner.close()


def test_a_stream_that_is_left_lets_the_next_caller_in(tmp_path, code):
    bundle = packed(tmp_path, f"{code}:Pieces", texts()).noun
    runner = open_runner(bundle, trust=True)
    stream = runner.stream({"text": np.array(["hi"], object)})
    next(stream)
    stream.close()
    assert runner.run({"text": np.array(["a"], object)})["word"].tolist() == ["a0 a1 a2 "]
    runner.close()


def test_a_value_error_is_the_callers_and_its_words_are_told(tmp_path, code):
    bundle = packed(tmp_path, f"{code}:Picky", texts()).noun
    with pytest.raises(ModelError, match=r"`Picky.predict` refused the input: .*`bad` is no word"):
        run(bundle, "bad")


def test_any_other_error_names_the_function_and_keeps_its_words_to_the_log(tmp_path, code):
    bundle = packed(tmp_path, f"{code}:Picky", texts()).noun
    with pytest.raises(ModelCodeError) as caught:
        run(bundle, "broken")
    assert caught.value.message == "`Picky.predict` failed with KeyError"
    assert "secret" not in caught.value.message + caught.value.hint


def _at_once(bundle, rows):
    runner = open_runner(bundle, trust=True)
    feeds = {"text": np.array(["a"] * rows, object)}
    with ThreadPoolExecutor(2) as threads:
        answers = [f.result() for f in [threads.submit(runner.run, feeds) for _ in range(6)]]
    runner.close()
    return max(int(answer["most"].max()) for answer in answers)


def test_a_class_is_called_by_one_thread_at_a_time_unless_it_says_it_is_safe(tmp_path, code):
    alone = packed(tmp_path, f"{code}:Alone", texts()).noun
    assert _at_once(alone, 4) == 1
    safe = packed(tmp_path, f"{code}:Together", texts(), out=tmp_path / "safe").noun
    assert _at_once(safe, 5) == 2  # two threads met inside, else the barrier would have broken


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("class M:\n    def load(self): raise OSError('no weights')\n    predict = print\n",
         ModelCodeError, "`M.load` failed: OSError: no weights"),
        ("import nothing_like_it\nclass M:\n    def predict(self, inputs): ...\n",
         NotFoundError, "nothing_like_it"),
        ("class M:\n    def predict(self, inputs): return {'x': 3}\n",
         ModelCodeError, "gave `x` of shape"),
        ("class M:\n    inputs = {'text': 'what[?'}\n    def predict(self, inputs): ...\n",
         ModelError, "declares `text`"),
        ("class M:\n    def predict(self, x):\n        import lazy\n        return lazy.f(x)\n",
         ModelCodeError, "ModuleNotFoundError"),
    ],
    ids=["load", "library", "shape", "declaration", "late-import"],
)  # fmt: skip
def test_what_is_wrong_with_a_class_is_said_when_it_is_packed(tmp_path, source, error, words):
    (tmp_path / "m.py").write_text(source)
    (tmp_path / "lazy.py").write_text("def f(inputs): return inputs\n")
    with pytest.raises(error) as caught:
        packed(tmp_path, f"{tmp_path}/m.py:M", texts())
    assert words in str(caught.value)


def test_files_are_included_for_code_only(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(UsageError, match="no Python code"):
        packed(tmp_path, tmp_path / "model.onnx", texts(), include=["suffix.txt"])


def test_a_package_with_relative_imports_is_copied_and_nothing_else(tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("FACTOR = 3\n")
    (package / "unrelated.py").write_text("1 / 0\n")
    (package / "model.py").write_text(
        "import numpy as np\nfrom .inner import FACTOR\n"
        "class M:\n    def predict(self, inputs):\n"
        "        return np.array([FACTOR for _ in inputs['text']])\n"
    )
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from fairlead.backends.code_files import collect_code\n"
        "import json; print(json.dumps(collect_code('pack.model:M').files))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ["pack/__init__.py", "pack/inner.py", "pack/model.py"]


@pytest.mark.parametrize("name", ["queue", "yaml"])
def test_a_module_that_hides_an_installed_one_is_refused(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("FACTOR = 2\n")
    (tmp_path / "m.py").write_text(
        f"import numpy as np\nfrom {name} import FACTOR\n"
        "def f(columns):\n    return np.array([FACTOR for _ in columns['text']])\n"
    )
    with pytest.raises(ModelError, match=f"{name}.py, or the folder {name}, has the name of"):
        packed(tmp_path, f"{tmp_path}/m.py:f", texts())


def test_a_bundle_of_code_is_packed_again_with_other_rows(tmp_path, code):
    bundle = packed(tmp_path, f"{code}:Later", texts()).noun
    again = packed(tmp_path, bundle.path, texts(7), trust=True, out=tmp_path / "again").noun
    assert again.manifest.entry == "models:Later"
    assert run(again, "ab")["prediction"].tolist() == [2]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_loads_a_bundle_of_code(tmp_path, code):
    mlflow = pytest.importorskip("mlflow.pyfunc")
    pandas = pytest.importorskip("pandas")
    before = threading.active_count()
    bundle = packed(tmp_path, f"{code}:Later", texts()).noun
    answer = mlflow.load_model(str(bundle.path)).predict(pandas.DataFrame({"text": ["abc", "d"]}))
    assert answer["prediction"].tolist() == [3, 1]
    assert threading.active_count() < before + 10
