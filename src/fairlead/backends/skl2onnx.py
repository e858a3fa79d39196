"""skl2onnx: estimators as ONNX graphs, with the gaps that matter closed."""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairlead.backends.skops import parts_of
from fairlead.core.errors import ModelError
from fairlead.core.extras import requires
from fairlead.core.signature import STRING

__all__ = ["Layout", "to_onnx"]

_OPSET = {"": 18, "ai.onnx.ml": 3}
_NO_ZIPMAP = {"zipmap": False}
_SCALER = "StandardScaler"


@dataclass(frozen=True)
class Layout:
    """The inputs of a converted estimator: name, dtype and values per row of each."""

    inputs: tuple[tuple[str, str, int], ...]

    @property
    def is_stacked(self) -> bool:
        """Whether all features come side by side in one input."""
        return len(self.inputs) == 1 and self.inputs[0][2] > 1


def to_onnx(estimator: Any, layout: Layout, *, is_classifier: bool) -> Any:  # noqa: ANN401
    """Express a fitted estimator as an `onnx.ModelProto`.

    Missing text is "" in the graph, where the estimator knows it as NaN or None.

    Raises:
        ModelError: The estimator, or a part of it, has no counterpart in ONNX.
        MissingExtraError: skl2onnx is not installed.
    """
    with requires("sklearn", needed_by="converting an estimator to ONNX"):
        skl2onnx = importlib.import_module("skl2onnx")
        types = importlib.import_module("skl2onnx.common.data_types")
    kinds = {
        "float32": types.FloatTensorType,
        "float64": types.DoubleTensorType,
        "int64": types.Int64TensorType,
        "bool": types.BooleanTensorType,
        STRING: types.StringTensorType,
    }
    prepared = _prepared(estimator)
    _register_boosters(prepared)
    initial = [(name, kinds[dtype]([None, width])) for name, dtype, width in layout.inputs]

    def convert(options: dict[int, Any]) -> Any:  # noqa: ANN401 (untyped library)
        with warnings.catch_warnings(), _plain_attributes():
            warnings.simplefilter("ignore")
            return skl2onnx.convert_sklearn(
                prepared, initial_types=initial, options=options, target_opset=_OPSET
            )

    # Dividing, as scikit-learn does, rounds otherwise than multiplying with the reciprocal.
    exact = {id(p): {"div": "div"} for p in parts_of(prepared) if type(p).__name__ == _SCALER}
    try:
        try:
            proto = convert({**exact, **({id(prepared): _NO_ZIPMAP} if is_classifier else {})})
        except NameError:  # a classifier without scores knows no such option
            proto = convert(exact)
    except Exception as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
        raise ModelError(
            f"{type(estimator).__name__} cannot be expressed in ONNX: {reason}",
            hint="use estimators that skl2onnx supports",
        ) from exc
    _encode_missing_text(prepared, proto.graph)
    _name_present_locale(proto.graph)
    if any(dtype == "float64" for _, dtype, _ in layout.inputs):
        _impute_in_double(proto.graph)
        _run_trees_in_float(proto.graph)
    return proto


def _encode_missing_text(prepared: Any, graph: Any) -> None:  # noqa: ANN401 (untyped libraries)
    """Give "" the code that an ordinal encoder has for missing text, not that of a category."""
    encoders = [part for part in parts_of(prepared) if type(part).__name__ == "OrdinalEncoder"]
    codes = {float(encoder.encoded_missing_value) for encoder in encoders}
    for node in graph.node if codes else ():
        values = {item.name: item for item in node.attribute}
        if node.op_type != "LabelEncoder" or not {"keys_strings", "values_floats"} <= set(values):
            continue
        keys = list(values["keys_strings"].strings)
        if b"" in keys:
            values["values_floats"].floats[keys.index(b"")] = min(codes)


def _name_present_locale(graph: Any) -> None:  # noqa: ANN401 (untyped library)
    """Lower and upper case by rules that every Linux has; ONNX's en_US is in no slim container."""
    from onnx import helper

    for node in graph.node if sys.platform == "linux" else ():
        if node.op_type == "StringNormalizer":
            others = [item for item in node.attribute if item.name != "locale"]
            del node.attribute[:]
            node.attribute.extend([*others, helper.make_attribute("locale", "C.UTF-8")])


def _impute_in_double(graph: Any) -> None:  # noqa: ANN401 (untyped library)
    """Replace Imputer nodes, which ONNX Runtime runs in float32 only, by IsNaN and Where."""
    from onnx import helper, numpy_helper

    nodes = []
    for node in graph.node:
        values = {item.name: item for item in node.attribute}
        is_plain = "imputed_value_floats" in values and np.isnan(
            values["replaced_value_float"].f if "replaced_value_float" in values else 0.0
        )
        if node.op_type != "Imputer" or not is_plain:
            nodes.append(copy.deepcopy(node))
            continue
        source, target = node.input[0], node.output[0]
        fill = np.array(values["imputed_value_floats"].floats, dtype=np.float64)
        graph.initializer.append(numpy_helper.from_array(fill, f"{target}_fill"))
        nodes.append(helper.make_node("IsNaN", [source], [f"{target}_missing"]))
        parts = [f"{target}_missing", f"{target}_fill", source]
        nodes.append(helper.make_node("Where", parts, [target]))
    del graph.node[:]
    graph.node.extend(nodes)


def _run_trees_in_float(graph: Any) -> None:  # noqa: ANN401 (untyped library)
    """Cast what goes into trees to float32, as scikit-learn and XGBoost do; in place.

    The preprocessing before them keeps its float64, so that no value crosses a threshold by
    rounding.
    """
    from onnx import TensorProto, helper

    nodes = []
    given = set()
    for node in graph.node:
        if node.op_type in {"TreeEnsembleClassifier", "TreeEnsembleRegressor"}:
            cast = f"{node.input[0]}_as_float"
            nodes.append(helper.make_node("Cast", [node.input[0]], [cast], to=TensorProto.FLOAT))
            node.input[0] = cast
            given.add(node.output[-1])
        nodes.append(node)
    kept = [copy.deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    for value in (*graph.output, *graph.value_info):
        if value.name in given:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _prepared(estimator: Any) -> Any:  # noqa: ANN401 (an estimator)
    """Return a copy that skl2onnx can convert and that predicts the same.

    Encoders and imputers of text know "" as the missing value; what skl2onnx stumbles over and
    predictions do not need is reset.
    """
    prepared = copy.deepcopy(estimator)
    for part in parts_of(prepared):
        kind = type(part).__name__
        if kind == "SimpleImputer" and _is_text(getattr(part, "statistics_", None)):
            part.missing_values = ""
        elif kind in {"OneHotEncoder", "OrdinalEncoder", "TargetEncoder"}:
            part.categories_ = [_empty_for_missing(c) for c in getattr(part, "categories_", [])]
            if kind == "OrdinalEncoder":
                part.unknown_value = float(
                    np.nan if part.unknown_value is None else part.unknown_value
                )
                part.handle_unknown = "use_encoded_value"
        elif kind == "VotingClassifier":
            part.flatten_transform = False
        elif kind == "Booster" and type(part).__module__.startswith("xgboost"):
            part.feature_names = None
    return prepared


def _is_text(values: Any) -> bool:  # noqa: ANN401 (an array or None)
    return values is not None and any(isinstance(value, str) for value in np.ravel(values))


def _empty_for_missing(categories: Any) -> Any:  # noqa: ANN401 (an array)
    if not _is_text(categories):
        return categories
    plain = ["" if v is None or v != v else str(v) for v in categories.tolist()]
    return np.array(plain, dtype=object)


def _register_boosters(estimator: Any) -> None:  # noqa: ANN401 (an estimator)
    modules = {type(part).__module__.split(".")[0] for part in parts_of(estimator)}
    if "xgboost" in modules:
        _register_xgboost()
    if "lightgbm" in modules:
        _register_lightgbm()


_CLASSIFIER_OPTIONS = {"nocl": [True, False], "zipmap": [True, False, "columns"]}


def _register_xgboost() -> None:
    with requires("boosting", needed_by="converting an XGBoost model to ONNX"):
        xgboost = importlib.import_module("xgboost")
        converter = importlib.import_module(
            "onnxmltools.convert.xgboost.operator_converters.XGBoost"
        )
    skl2onnx = importlib.import_module("skl2onnx")
    shapes = importlib.import_module("skl2onnx.common.shape_calculator")
    skl2onnx.update_registered_converter(
        xgboost.XGBClassifier,
        "XGBoostXGBClassifier",
        shapes.calculate_linear_classifier_output_shapes,
        converter.convert_xgboost,
        options=_CLASSIFIER_OPTIONS,
    )
    skl2onnx.update_registered_converter(
        xgboost.XGBRegressor,
        "XGBoostXGBRegressor",
        shapes.calculate_linear_regressor_output_shapes,
        converter.convert_xgboost,
    )


def _register_lightgbm() -> None:
    with requires("boosting", needed_by="converting a LightGBM model to ONNX"):
        lightgbm = importlib.import_module("lightgbm")
        converter = importlib.import_module(
            "onnxmltools.convert.lightgbm.operator_converters.LightGbm"
        )
    skl2onnx = importlib.import_module("skl2onnx")
    shapes = importlib.import_module("skl2onnx.common.shape_calculator")
    skl2onnx.update_registered_converter(
        lightgbm.LGBMClassifier,
        "LightGbmLGBMClassifier",
        shapes.calculate_linear_classifier_output_shapes,
        converter.convert_lightgbm,
        options=_CLASSIFIER_OPTIONS,
    )
    skl2onnx.update_registered_converter(
        lightgbm.LGBMRegressor,
        "LightGbmLGBMRegressor",
        shapes.calculate_linear_regressor_output_shapes,
        converter.convert_lightgbm,
        options={"split": None},
    )


@contextmanager
def _plain_attributes() -> Iterator[None]:
    """Hand plain ints to ONNX where skl2onnx 1.20 hands booleans and numpy integers.

    onnx 1.23 refuses them, which breaks gradient boosting on histograms; may go when the oldest
    supported skl2onnx writes plain ints.
    """
    container: Any = importlib.import_module("skl2onnx.common._container")
    original = container.make_node

    def make_node(*arguments: Any, **attributes: Any) -> Any:  # noqa: ANN401 (untyped library)
        return original(*arguments, **{name: _plain(v) for name, v in attributes.items()})

    container.make_node = make_node
    try:
        yield
    finally:
        container.make_node = original


def _plain(value: Any) -> Any:  # noqa: ANN401 (any attribute)
    if isinstance(value, list | tuple) and value and isinstance(value[0], bool | np.generic | int):
        return [_plain(item) for item in value]
    if isinstance(value, bool | np.bool_ | np.integer):
        return int(value)
    return value.item() if isinstance(value, np.floating) else value
