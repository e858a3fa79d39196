"""Ensembles and pre- and post-processing: real bundles put together, run in one process."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fairlead.backends.ensembles import read_plan, step_bundles
from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.errors import IntegrityError, ModelError, SignatureError, UntrustedError
from fairlead.measure.quality import predict
from tests.backends.pack_models import packed
from tests.backends.python_material import texts, write_code
from tests.serve.inference_models import classifier_bundle, save_model, value

_FLOAT, _INT64 = TensorProto.FLOAT, TensorProto.INT64
RNG = np.random.default_rng(0)
EMBEDDINGS = RNG.normal(size=(100, 8)).astype(np.float32)
WEIGHTS = RNG.normal(size=(8, 3)).astype(np.float32)
PIPELINE = """
name = "sentiment"

[[steps]]
name = "tokenise"
code = "models.py:Tokeniser"

[[steps]]
name = "encode"
bundle = "encoder"

[[steps]]
name = "classify"
bundle = "classifier"
inputs = { x = "encode.embedding" }
"""


def encoder():
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["embedding"], axes=[1], keepdims=0),
    ]
    return save_model(
        nodes, [value("ids", _INT64, ["n", "l"])], [value("embedding", _FLOAT, ["n", 8])],
        [numpy_helper.from_array(EMBEDDINGS, "table")],
    )  # fmt: skip


def classifier():
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    return save_model(
        nodes, [value("x", _FLOAT, ["n", 8])],
        [value("label", _INT64, ["n"]), value("scores", _FLOAT, ["n", 3])],
        [numpy_helper.from_array(WEIGHTS, "W")],
    )  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with code and the bundles `encoder` and `classifier`."""
    folder = tmp_path_factory.mktemp("parts")
    write_code(folder)
    (folder / "encoder.onnx").write_bytes(encoder())
    (folder / "classifier.onnx").write_bytes(classifier())
    ids = Dataset({"ids": RNG.integers(0, 100, (40, 5))})
    rows = Dataset({"x": RNG.normal(size=(40, 8)).astype(np.float32)})
    packed(folder, folder / "encoder.onnx", ids, out=folder / "encoder")
    packed(folder, folder / "classifier.onnx", rows, out=folder / "classifier")
    return folder


def ensemble(parts, out, text, rows, **options):
    file = parts / f"{out}.toml"
    file.write_text(text)
    return packed(parts, file, rows, out=parts / out, replace=True, **options)


@pytest.fixture(scope="module")
def pipeline(parts):
    return ensemble(parts, "pipeline", PIPELINE, texts(300)).noun


def by_hand(rows):
    tokens = [[sum(map(ord, word)) % 99 + 1 for word in text.split()] for text in rows]
    longest = max(map(len, tokens))
    ids = np.array([row + [0] * (longest - len(row)) for row in tokens])
    logits = EMBEDDINGS[ids].mean(axis=1) @ WEIGHTS
    return np.argmax(logits, axis=1)


def test_a_pipeline_answers_as_its_steps_do_by_hand(pipeline):
    runner = open_runner(pipeline, trust=True)
    rows = ["one", "three short words", "two words"]
    answer = runner.run({"text": np.array(rows, object)})
    assert answer["label"].tolist() == by_hand(rows).tolist()
    assert list(answer.parts_ms) == ["tokenise", "encode", "classify"]
    assert min(answer.parts_ms.values()) >= 0
    runner.close()


def test_a_pipeline_takes_meaning_and_name_from_its_parts_and_its_file(pipeline):
    assert pipeline.name == "sentiment"
    assert (pipeline.manifest.kind, pipeline.manifest.task) == ("ensemble", "classification")
    assert [str(s) for s in pipeline.signature.inputs] == ["text: string[?]"]
    assert (pipeline.manifest.prediction_output, pipeline.manifest.score_output) == (
        "label", "scores",
    )  # fmt: skip


def test_versions_of_the_steps_are_recorded(parts, pipeline):
    plan = {step.name: step for step in read_plan(pipeline.path).steps}
    assert plan["encode"].digest == Bundle.open(parts / "encoder").digest
    assert plan["encode"].version == Bundle.open(parts / "encoder").version
    assert plan["tokenise"].source == "models.py:Tokeniser"


def test_a_step_is_covered_by_the_digest_of_the_whole(pipeline, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(pipeline.path, broken)
    model = broken / "steps" / "encode" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(IntegrityError, match=r"steps/encode/model\.onnx"):
        Bundle.open(broken)


def test_a_step_that_is_another_bundle_is_noticed_without_reading_all_bytes(
    parts, pipeline, tmp_path
):
    broken = tmp_path / "broken"
    shutil.copytree(pipeline.path, broken)
    shutil.rmtree(broken / "steps" / "encode")
    shutil.copytree(parts / "classifier", broken / "steps" / "encode")
    with pytest.raises(IntegrityError, match="step `encode`"):
        step_bundles(Bundle.open(broken, verify=False))


def test_code_in_a_step_needs_trust(pipeline):
    with pytest.raises(UntrustedError):
        open_runner(pipeline)


def test_a_pipeline_of_onnx_bundles_alone_needs_none(parts):
    text = PIPELINE[PIPELINE.index('[[steps]]\nname = "encode"') :]
    rows = Dataset({"ids": RNG.integers(0, 100, (30, 6))})
    bundle = ensemble(parts, "plain", text, rows).noun
    assert not bundle.manifest.needs_trust
    runner = open_runner(bundle)
    ids = np.array([[1, 2], [3, 4]])
    logits = EMBEDDINGS[ids].mean(axis=1) @ WEIGHTS
    assert runner.run({"ids": ids})["label"].tolist() == np.argmax(logits, axis=1).tolist()
    runner.close()


def test_steps_that_do_not_fit_are_refused_when_they_are_packed(parts):
    text = PIPELINE.replace('x = "encode.embedding"', 'x = "tokenise.ids"')
    with pytest.raises(SignatureError, match=r"step `classify`: input `x` has shape"):
        ensemble(parts, "wrong", text, texts())


def test_dtypes_that_do_not_fit_are_refused_before_anything_runs(parts):
    text = PIPELINE.replace('x = "encode.embedding"', 'x = "request.text"')
    with pytest.raises(SignatureError, match=r"an earlier step text: string"):
        ensemble(parts, "wrong", text, texts())


def test_a_failing_step_is_named(parts):
    text = '[[steps]]\nname = "check"\ncode = "models.py:Picky"\n'
    bundle = ensemble(parts, "picky", text, texts()).noun
    runner = open_runner(bundle, trust=True)
    with pytest.raises(ModelError, match=r"step `check`: `Picky.predict` refused"):
        runner.run({"text": np.array(["bad"], object)})
    runner.close()


def test_the_last_step_may_stream(parts):
    text = '[[steps]]\nname = "speak"\ncode = "models.py:Pieces"\n'
    runner = open_runner(ensemble(parts, "speaker", text, texts()).noun, trust=True)
    assert runner.is_streaming
    words = [p["word"].tolist() for p in runner.stream({"text": np.array(["hi"], object)})]
    assert words == [["h0 "], ["h1 "], ["h2 "]]
    runner.close()


@pytest.fixture(scope="module")
def voters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voters")
    for number, shift in enumerate((0.0, 0.4, 5.0)):
        classifier_bundle(folder / f"m{number}", shift=shift)
    rows = RNG.normal(size=(60, 4))
    columns = dict(zip("abcd", rows.T, strict=True))
    steps = "".join(f'[[steps]]\nname = "m{n}"\nbundle = "m{n}"\n' for n in range(3))
    return folder, Dataset(columns, labels=RNG.integers(0, 3, 60), label_name="y"), steps, rows


def answers_of(folder, rows):
    feeds = {"x": rows.astype(np.float32)}
    runners = [open_runner(Bundle.open(folder / f"m{n}")) for n in range(3)]
    answers = [runner.run(feeds) for runner in runners]
    for runner in runners:
        runner.close()
    return answers


def test_an_ensemble_averages_scores_and_names_the_best(voters):
    folder, data, steps, rows = voters
    text = steps + (
        '[[steps]]\nname = "all"\ncombine = "mean"\nof = ["m0.scores", "m1.scores", "m2.scores"]\n'
        'weights = [2, 1, 1]\n'
        '[[steps]]\nname = "best"\ncombine = "argmax"\nof = ["all.mean"]\n'
        '[outputs]\nlabel = "best.argmax"\nscores = "all.mean"\n'
    )  # fmt: skip
    bundle = ensemble(folder, "mean", text, data).noun
    assert bundle.manifest.feature_columns == ("a", "b", "c", "d")
    assert bundle.scores.primary.metric == "accuracy"
    runner = open_runner(bundle)
    found = predict(runner, bundle.manifest, data)
    scores = [answer["scores"] for answer in answers_of(folder, rows)]
    expected = (2 * scores[0] + scores[1] + scores[2]) / 4
    np.testing.assert_allclose(found["scores"], expected, atol=1e-6)
    assert found["label"].tolist() == np.argmax(expected, axis=1).tolist()
    runner.close()


def test_an_ensemble_votes(voters):
    folder, data, steps, rows = voters
    text = steps + (
        '[[steps]]\nname = "all"\ncombine = "vote"\nof = ["m0.label", "m1.label", "m2.label"]\n'
    )
    bundle = ensemble(folder, "vote", text, data).noun
    runner = open_runner(bundle)
    found = predict(runner, bundle.manifest, data)["vote"]
    votes = np.stack([answer["label"] for answer in answers_of(folder, rows)])
    expected = [np.argmax(np.bincount(column, minlength=3)) for column in votes.T]
    assert found.tolist() == [int(label) for label in expected]
    runner.close()


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrapped")
    code = write_code(folder)
    classifier_bundle(folder / "wines")
    left, right = RNG.normal(size=(2, 50))
    labels = np.array(list("xyz"), object)[RNG.integers(0, 3, 50)]
    data = Dataset({"left": left, "right": right}, labels=labels, label_name="kind")
    bundle = packed(
        folder, folder / "wines" / "model.onnx", data,
        preprocess=f"{code}:halves", postprocess=f"{code}:named",
    ).noun  # fmt: skip
    return folder, bundle, data


def test_code_before_and_after_a_model_is_part_of_the_bundle(wrapped):
    folder, bundle, data = wrapped
    (folder / "models.py").rename(folder / "moved.py")
    runner = open_runner(bundle, trust=True)
    found = predict(runner, bundle.manifest, data)
    left, right = data.columns["left"], data.columns["right"]
    columns = np.stack([left / 2, right / 2, left, right], axis=1).astype(np.float32)
    model = open_runner(Bundle.open(folder / "wines"))
    expected = model.run({"x": columns})
    assert found["kind"].tolist() == ["xyz"[label] for label in expected["label"]]
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-6)
    runner.close()
    model.close()


def test_the_signature_is_that_of_the_request_and_scores_are_of_the_whole(wrapped):
    _, bundle, _ = wrapped
    assert [spec.name for spec in bundle.signature.inputs] == ["left", "right"]
    assert bundle.manifest.classes == ("x", "y", "z")
    assert bundle.scores.primary.metric == "accuracy"
    assert any("pre-processing by" in change for change in bundle.provenance.changes)
    assert list(step_bundles(bundle)) == ["preprocess", "model", "postprocess"]
