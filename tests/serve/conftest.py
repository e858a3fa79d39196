"""Servers that several tests ask."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from fairlead.backends.endpoint import spawn_server
from fairlead.core.settings import Settings
from fairlead.core.workspace import Workspace

from . import inference_models as models


@contextmanager
def serving(folder, bundle, name="wines", more=(), **options):
    """A real server on a free port, with a workspace of its own."""
    workspace = Workspace.open(Settings.load(home=folder / ".fairlead"))
    with spawn_server(bundle.path, *more, workspace=workspace, name=name, **options) as handle:
        yield handle


@pytest.fixture(scope="session")
def wines(tmp_path_factory):
    return models.classifier_bundle(tmp_path_factory.mktemp("wines") / "bundle")


@pytest.fixture(scope="session")
def wines_candidate(tmp_path_factory):
    return models.classifier_bundle(tmp_path_factory.mktemp("wines2") / "bundle", shift=0.5)


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    return models.text_bundle(tmp_path_factory.mktemp("people") / "bundle")


@pytest.fixture(scope="session")
def dtypes(tmp_path_factory):
    return models.dtypes_bundle(tmp_path_factory.mktemp("dtypes") / "bundle")


@pytest.fixture(scope="session")
def slow(tmp_path_factory):
    return models.slow_bundle(tmp_path_factory.mktemp("slow") / "bundle")


@pytest.fixture(scope="module")
def wines_server(wines, tmp_path_factory):
    settings = {"max_body_bytes": 1 << 20}
    with serving(tmp_path_factory.mktemp("server"), wines, settings=settings) as handle:
        yield handle


@pytest.fixture(scope="module")
def people_server(people, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server"), people, "people") as handle:
        yield handle


@pytest.fixture(scope="module")
def dtypes_server(dtypes, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server"), dtypes, "dtypes") as handle:
        yield handle


@pytest.fixture(scope="module")
def two_arms(wines, wines_candidate, tmp_path_factory):
    with serving(
        tmp_path_factory.mktemp("server"),
        wines,
        candidate=wines_candidate.path,
        candidate_weight=0.25,
    ) as handle:
        yield handle
