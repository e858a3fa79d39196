"""Predictions, correctness per row, scores, and what outputs mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from fairlead.core.bundle import BundleManifest
from fairlead.core.dataset import Dataset
from fairlead.core.errors import DataError, ModelError
from fairlead.core.signature import Signature, TensorSpec
from fairlead.measure.agreement import Answers, agreement_of
from fairlead.measure.features import choose_features
from fairlead.measure.metrics import roc_auc, wilson_interval
from fairlead.measure.quality import evaluate, matched_labels, predicted, row_scores, run_batches
from fairlead.measure.roles import find_roles


def manifest(task="classification", classes=(0, 1), *, prediction="label", scores="scores"):
    spec = TensorSpec(name="x", dtype="float32", shape=(-1, 2))
    return BundleManifest.model_validate(
        {
            "name": "m",
            "kind": "onnx",
            "model_file": "model.onnx",
            "task": task,
            "signature": Signature(inputs=(spec,), outputs=()),
            "prediction_output": prediction,
            "score_output": scores,
            "classes": classes,
        }
    )


def answers(n_rows=400, n_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.ones(n_classes), n_rows)
    truth = np.array([rng.choice(n_classes, p=row) for row in scores])
    return {"label": scores.argmax(axis=1), "scores": scores}, truth


class Echo:
    """A model that gives its input back, with a fixed or a free batch."""

    def __init__(self, batch=-1):
        spec = TensorSpec(name="x", dtype="float32", shape=(batch, 2))
        self.signature = Signature(inputs=(spec,), outputs=(spec,))
        self.sizes = []

    def run(self, feeds):
        self.sizes.append(len(feeds["x"]))
        return {"x": feeds["x"]}


def test_scores_agree_with_scikit_learn():
    outputs, truth = answers()
    found = {s.metric: s for s in evaluate(manifest(), outputs, truth, "d").scores}
    probability = outputs["scores"][:, 1]
    expected = {
        "accuracy": reference.accuracy_score(truth, outputs["label"]),
        "macro_f1": reference.f1_score(truth, outputs["label"], average="macro"),
        "log_loss": reference.log_loss(truth, outputs["scores"]),
        "roc_auc": reference.roc_auc_score(truth, probability),
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value)
        assert found[name].ci_low < value < found[name].ci_high


def test_regression_scores_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=300)
    guess = truth + rng.normal(scale=0.3, size=300)
    scores = evaluate(manifest("regression", ()), {"label": guess}, truth, "d").scores
    assert [s.metric for s in scores] == ["r2", "rmse", "mae"]
    assert scores[0].value == pytest.approx(reference.r2_score(truth, guess))
    assert scores[1].value == pytest.approx(reference.root_mean_squared_error(truth, guess))
    assert scores[2].value == pytest.approx(reference.mean_absolute_error(truth, guess))
    assert all(s.ci_low < s.value < s.ci_high for s in scores)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(3)
    hits = rng.binomial(60, 0.8, size=2000)
    inside = [low <= 0.8 <= high for low, high in (wilson_interval(int(h), 60) for h in hits)]
    assert 0.93 < np.mean(inside) < 0.975


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=60))
def test_the_area_under_the_curve_counts_ties_as_half(rows):
    scores = np.array([float(score) for score, _ in rows])
    truth = np.array([flag for _, flag in rows])
    if truth.all() or not truth.any():
        return
    assert roc_auc(scores, truth)[0] == pytest.approx(reference.roc_auc_score(truth, scores))


def test_rows_are_right_or_wrong_or_off_by_an_amount():
    outputs = {"label": np.array([0, 1, 1])}
    assert row_scores(manifest(scores=None), outputs, np.array([0, 1, 0])).tolist() == [1, 1, 0]
    found = row_scores(
        manifest("regression", ()), {"label": np.array([1.0, np.nan, 5.0])}, np.ones(3)
    )
    assert found.tolist() == [0, -4, -4]


def test_the_highest_score_is_the_prediction():
    about = manifest(classes=("a", "b"), prediction="scores")
    assert predicted(about, {"scores": np.array([[0.1, 0.9], [2, -1]])}).tolist() == ["b", "a"]
    assert predicted(about, {"scores": np.array([[0.4], [0.6]])}).tolist() == ["a", "b"]
    unnamed = manifest(classes=(), prediction="scores")
    assert predicted(unnamed, {"scores": np.eye(3)}).tolist() == [0, 1, 2]


def test_a_prediction_that_is_not_there_is_an_error():
    with pytest.raises(ModelError, match="no output `label`"):
        predicted(manifest(), {"other": np.ones(2)})
    with pytest.raises(ModelError, match="3 values per row"):
        predicted(manifest("other", ()), {"label": np.ones((2, 3))})


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        ((0, 1), ["0", "one"]),
        ((0, 1), ["0", "2"]),
        ((0, 1), [-1, 1]),
        ((0, 1), [0.5, 1.0]),
        (("a", "b"), [0, 1]),
        (("True", "False"), [True, False]),
        (("a", "b"), ["a", "c"]),
    ],
)
def test_labels_of_another_kind_are_refused(classes, labels):
    array = np.array(labels, dtype=object if isinstance(labels[0], str) else None)
    with pytest.raises(DataError, match="classes of m are"):
        matched_labels(manifest(classes=classes), array)


def test_labels_take_the_kind_of_the_classes():
    assert matched_labels(manifest(), np.array([True, False])).tolist() == [1, 0]
    assert matched_labels(manifest(), np.array([1.0, 0.0])).dtype == np.int64
    assert matched_labels(manifest(), np.array(["1", "0"], object)).tolist() == [1, 0]
    as_text = matched_labels(manifest(classes=("3", "7")), np.array([7, 3]))
    assert as_text.tolist() == ["7", "3"]
    assert matched_labels(manifest(classes=()), np.array(["x"], object)).tolist() == ["x"]
    with pytest.raises(DataError, match="predicts numbers"):
        matched_labels(manifest("regression", ()), np.array(["x"], dtype=object))
    with pytest.raises(DataError, match="not known"):
        matched_labels(manifest("other", ()), np.array([1]))


def test_a_regression_without_any_number_is_an_error():
    with pytest.raises(ModelError, match="no finite number"):
        evaluate(manifest("regression", ()), {"label": np.full(3, np.nan)}, np.ones(3), "d")


def test_batches_are_cut_and_put_together():
    model, rows = Echo(), np.arange(14, dtype=np.float32).reshape(7, 2)
    assert np.array_equal(run_batches(model, {"x": rows}, 3)["x"], rows)
    assert model.sizes == [3, 3, 1]


def test_a_fixed_batch_is_filled_up():
    model, rows = Echo(batch=4), np.arange(14, dtype=np.float32).reshape(7, 2)
    assert np.array_equal(run_batches(model, {"x": rows})["x"], rows)
    assert model.sizes == [4, 4]


def test_an_output_without_rows_is_an_error():
    model = Echo()
    model.run = lambda feeds: {"x": np.float32(3)}
    with pytest.raises(ModelError, match="for a batch of 2 rows"):
        run_batches(model, {"x": np.ones((2, 2))})


# What outputs mean


def roles(labels=None, **outputs):
    array = None if labels is None else np.array(labels, dtype=None)
    if array is not None and array.dtype.kind == "U":
        array = array.astype(object)
    return find_roles({name: np.asarray(value) for name, value in outputs.items()}, array)


SOFTMAX = np.array([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])


def test_labels_beside_scores_are_a_classifier():
    found = roles(label=np.array([5, 9, 5]), scores=SOFTMAX)
    assert (found.task, found.classes, found.score_output) == ("classification", (5, 9), "scores")


def test_classes_that_are_never_predicted_are_filled_up():
    found = roles(label=np.array([0, 0, 0]), scores=np.array([[0.7, 0.2, 0.1]] * 3))
    assert found.classes == (0, 1, 2)


def test_a_table_is_read_by_its_labels():
    assert roles(["b", "a", "b"], out=SOFTMAX).classes == ("a", "b")
    assert roles([1, 0, 1], out=SOFTMAX * 9).classes == (0, 1)
    assert roles([-1, 1, 1], out=SOFTMAX).classes == (-1, 1)
    assert roles([0.5, 0.25, 1.0], out=SOFTMAX).task == "other"
    with pytest.raises(DataError, match="3 classes"):
        roles(["a", "b", "c"], out=SOFTMAX)


def test_text_labels_beside_codes_name_the_scores_in_sorted_order():
    found = roles(["no", "yes", "no"], label=np.array([0, 1, 0]), scores=SOFTMAX)
    assert (found.classes, found.prediction_output) == (("no", "yes"), "scores")
    assert "sorted order" in found.notes[0]
    with pytest.raises(DataError, match="3 classes"):
        roles(["a", "b", "c"], label=np.array([0, 1, 0]), scores=SOFTMAX)


def test_numbers_written_as_text_are_numbers():
    found = roles(["0", "1", "0"], label=np.array([0, 1, 0]), scores=SOFTMAX)
    assert (found.classes, found.prediction_output) == ((0, 1), "label")
    twelve = np.eye(12)
    assert roles([str(i) for i in range(12)], out=twelve).classes == tuple(range(12))
    assert roles([str(i) for i in range(5)] * 2, out=np.eye(10)).classes == tuple(range(10))


def test_a_number_beside_labels_of_two_classes_is_told():
    assert "no probability" in roles([0, 1, 0], out=SOFTMAX[:, :1] * 9).notes[0]


def test_a_table_without_labels_is_a_classifier_only_when_rows_are_distributions():
    assert roles(out=SOFTMAX).task == "classification"
    assert roles(out=SOFTMAX * 3).task == "other"


def test_one_number_is_read_by_its_labels():
    share = np.array([[0.1], [0.9], [0.4]])
    assert roles([0, 1, 0], out=share).task == "classification"
    assert roles([0, 1, 0], out=share * 9).task == "regression"
    assert roles([3.5, 1.25, 0.5], out=share).task == "regression"
    assert roles(["n", "y", "n"], out=share).classes == ("n", "y")
    assert roles(out=share).task == "other"
    assert roles(out=share * 9).task == "regression"
    with pytest.raises(DataError, match="text"):
        roles(["a", "b", "c"], out=share)


def test_a_lone_label_is_a_classifier_only_with_labels():
    assert roles(["x", "y"], label=np.array(["x", "y"], dtype=object)).task == "classification"
    assert roles(label=np.array([1, 2])).task == "other"


def test_known_tasks_are_kept():
    assert find_roles({"v": np.ones(2)}, None, task="regression").task == "regression"
    assert find_roles({"v": np.ones(2)}, np.array([0, 1]), task="other").task == "other"
    found = find_roles({"v": np.array([2.0, -2.0])}, None, task="classification", classes=(0, 1))
    assert found.classes == (0, 1)


def test_tensors_of_higher_rank_are_of_another_task():
    assert roles(out=np.ones((2, 3, 4))).task == "other"
    with pytest.raises(ModelError):
        find_roles({}, None)


# Conversions


def test_equal_models_agree_and_others_do_not():
    outputs, _ = answers(50)
    one = Answers(outputs["label"], outputs["scores"])
    assert agreement_of(one, one).is_close
    other = Answers(1 - outputs["label"], 1 - outputs["scores"])
    found = agreement_of(one, other)
    assert not found.is_close
    assert found.label_flips > 40
    assert "of 50 predictions differ" in str(found)


def test_a_tie_may_flip():
    scores = np.array([[0.5, 0.5], [0.9, 0.1]])
    found = agreement_of(
        Answers(np.array([0, 0]), scores), Answers(np.array([1, 0]), scores + 1e-7)
    )
    assert found.label_flips == 0
    assert found.is_close


def test_numbers_are_compared_in_units_of_their_spread():
    values = np.array([1000.0, 2000.0, 3000.0])
    assert agreement_of(Answers(values), Answers(values + 0.01)).is_close
    assert not agreement_of(Answers(values), Answers(values + 10)).is_close
    assert not agreement_of(Answers(values), Answers(np.array([1000, 2000, np.nan]))).is_close
    gaps = np.array([1.0, np.nan, 3.0])
    assert agreement_of(Answers(gaps), Answers(gaps)).is_close
    assert not agreement_of(Answers(values), Answers(values[:2])).is_close


# Features


def signature(*shape, name="x", dtype="float32"):
    return Signature(inputs=(TensorSpec(name=name, dtype=dtype, shape=shape),), outputs=())


ROWS = Dataset(
    {
        "user_id": np.arange(20),
        "a": np.ones(20),
        "b": np.arange(20) % 3,
        "t": np.array(["x"] * 20, dtype=object),
    }
)


def test_identifiers_are_left_out_only_when_they_are_too_many():
    assert choose_features(ROWS, signature(-1, 3))[0] == ("user_id", "a", "b")
    names, notes = choose_features(ROWS, signature(-1, 2))
    assert names == ("a", "b")
    assert "user_id" in notes[0]


def test_features_have_to_fit():
    with pytest.raises(DataError, match="3 values per row in 3 numeric columns"):
        choose_features(ROWS, signature(-1, 7))
    with pytest.raises(DataError, match="lacks 1 of the model's 2 features: `z`"):
        choose_features(ROWS, signature(-1, 2), ("a", "z"))
    with pytest.raises(DataError, match="2 values per row"):
        choose_features(ROWS, signature(-1, 3), ("a", "b"))


def test_inputs_that_are_columns_need_no_choice():
    assert choose_features(ROWS, signature(-1, 1, name="a")) == ((), ())
    two = Signature(
        inputs=(*signature(-1, name="a").inputs, *signature(-1, name="b").inputs), outputs=()
    )
    assert choose_features(ROWS, two) == ((), ())
    assert choose_features(ROWS, signature(-1, 1, dtype="string"))[0] == ("t",)
    assert choose_features(ROWS, signature(-1, -1))[0] == ("user_id", "a", "b")
