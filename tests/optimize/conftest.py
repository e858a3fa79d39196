"""Bundles of the zoo's models, made once per session."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from tests.optimize import zoo

PackBundle = Callable[..., Bundle]


@pytest.fixture(scope="session")
def pack_bundle(tmp_path_factory: pytest.TempPathFactory) -> PackBundle:
    """Pack a model with its rows, without recording anything in a workspace."""
    from fairlead.api.context import Context
    from fairlead.api.packing import pack

    context = Context.open(home=tmp_path_factory.mktemp("packing"))

    def make(model: onnx.ModelProto, data: Dataset, *, external: bool = False) -> Bundle:
        folder = tmp_path_factory.mktemp("bundle")
        path = zoo.save(model, folder / "model.onnx", external=external)
        rows = zoo.save_rows(data, folder / "rows.parquet")
        return pack(
            str(path), data=str(rows), labels=data.label_name, out=folder / "bundle",
            context=context,
        ).noun  # fmt: skip

    return make


@pytest.fixture(scope="session")
def digits_bundle(pack_bundle: PackBundle) -> Bundle:
    return pack_bundle(zoo.digits_mlp(), zoo.digits_dataset())


@pytest.fixture(scope="session")
def forest_bundle(pack_bundle: PackBundle) -> Bundle:
    return pack_bundle(zoo.digits_forest(), zoo.digits_dataset())


@pytest.fixture(scope="session")
def outlier_bundle(pack_bundle: PackBundle) -> Bundle:
    return pack_bundle(zoo.outlier_digits(), zoo.digits_dataset())
