"""The registry: versions count up, aliases move, and stored bytes can neither vanish nor change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fairlead.core.bundle import Bundle
from fairlead.core.errors import IntegrityError, NotFoundError, UsageError
from fairlead.core.settings import Settings
from fairlead.core.workspace import Workspace
from fairlead.mlops.tracking import (
    delete_alias,
    list_versions,
    read_version,
    register,
    resolve,
    set_alias,
    show_version,
)
from tests import processes
from tests.mlops.bundle_factory import make_bundle


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return open_workspace(str(tmp_path / "home"))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def open_workspace(home: str) -> Workspace:
    return Workspace.open(Settings(home=Path(home)))


def test_versions_count_up_from_one(workspace: Workspace, bundle: Bundle, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", content=b"more")
    versions = [register(item, "churn", workspace=workspace).noun for item in (bundle, other)]
    assert [version.version for version in versions] == [1, 2]
    assert [version.bundle_digest for version in versions] == [bundle.digest, other.digest]
    assert register(bundle, "fraud", workspace=workspace).noun.version == 1


def test_a_version_outlives_the_bundle_it_was_made_from(
    workspace: Workspace, bundle: Bundle
) -> None:
    register(bundle, "churn", workspace=workspace)
    shutil.rmtree(bundle.path)
    stored = resolve("churn:1", workspace=workspace)
    assert stored.digest == bundle.digest
    assert stored.model_path.read_bytes() == b"weights"


def test_the_same_bytes_are_stored_once_and_said_so(workspace: Workspace, bundle: Bundle) -> None:
    register(bundle, "churn", workspace=workspace)
    outcome = register(bundle, "churn", workspace=workspace)
    assert outcome.noun.version == 2
    assert "churn:1" in outcome.report.findings[0].text
    assert len(list((workspace.artifacts / "bundles").iterdir())) == 1


def test_an_alias_moves_and_the_versions_stay(
    workspace: Workspace, bundle: Bundle, tmp_path: Path
) -> None:
    register(bundle, "churn", workspace=workspace, alias="champion")
    other = make_bundle(tmp_path / "other", content=b"more")
    register(other, "churn", workspace=workspace)
    assert resolve("churn@champion", workspace=workspace).digest == bundle.digest
    outcome = set_alias("churn", 2, "champion", workspace=workspace)
    assert "before it was version 1" in outcome.report.summary
    assert resolve("churn@champion", workspace=workspace).digest == other.digest
    assert read_version("churn:1", workspace=workspace).aliases == ()
    assert read_version("churn", workspace=workspace).aliases == ("champion",)
    assert set_alias("churn", 2, "champion", workspace=workspace).report.verdict == "kept"


def test_an_alias_can_be_deleted(workspace: Workspace, bundle: Bundle) -> None:
    register(bundle, "churn", workspace=workspace, alias="champion")
    assert "churn:1" in delete_alias("churn", "champion", workspace=workspace).summary
    with pytest.raises(NotFoundError, match="champion"):
        resolve("churn@champion", workspace=workspace)
    assert resolve("churn:1", workspace=workspace).digest == bundle.digest


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("nothing", "churn"),
        ("churn:7", "latest version is 1"),
        ("churn@best", "champion → 1"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(
    workspace: Workspace, bundle: Bundle, reference: str, hint: str
) -> None:
    register(bundle, "churn", workspace=workspace, alias="champion")
    with pytest.raises(NotFoundError) as caught:
        resolve(reference, workspace=workspace)
    assert hint in caught.value.hint


@pytest.mark.parametrize("reference", ["", "a/b", "churn:x", "churn:-1", "churn:1e3", "../up"])
def test_a_reference_that_cannot_be_read_is_refused(workspace: Workspace, reference: str) -> None:
    with pytest.raises(UsageError):
        resolve(reference, workspace=workspace)


@pytest.mark.parametrize("alias", ["", "1", "v2", "latest", "a b", "@"])
def test_an_alias_that_looks_like_a_version_is_refused(
    workspace: Workspace, bundle: Bundle, alias: str
) -> None:
    with pytest.raises(UsageError):
        register(bundle, "churn", workspace=workspace, alias=alias)
    with pytest.raises(NotFoundError):
        list_versions("churn", workspace=workspace)


def test_a_changed_byte_of_a_stored_version_is_noticed(
    workspace: Workspace, bundle: Bundle
) -> None:
    version = register(bundle, "churn", workspace=workspace).noun
    (Path(version.path) / "model.onnx").write_bytes(b"poison!")
    with pytest.raises(IntegrityError):
        resolve("churn", workspace=workspace)
    with pytest.raises(IntegrityError):
        register(bundle, "churn", workspace=workspace)


def test_a_stored_bundle_that_was_removed_is_named(workspace: Workspace, bundle: Bundle) -> None:
    version = register(bundle, "churn", workspace=workspace).noun
    shutil.rmtree(version.path)
    with pytest.raises(NotFoundError, match="gone"):
        resolve("churn", workspace=workspace)


def test_an_unknown_run_is_refused_before_anything_is_stored(
    workspace: Workspace, bundle: Bundle
) -> None:
    with pytest.raises(NotFoundError, match="nope"):
        register(bundle, "churn", workspace=workspace, run_id="nope")
    assert list_versions(workspace=workspace) == []


def test_lineage_follows_the_parents_to_the_data(
    workspace: Workspace, bundle: Bundle, tmp_path: Path
) -> None:
    child = make_bundle(tmp_path / "child", content=b"small", parent=bundle)
    grandchild = make_bundle(tmp_path / "grandchild", content=b"tiny", parent=child)
    for item in (bundle, child, grandchild):
        register(item, "churn", workspace=workspace)
    lineage = show_version("churn:3", workspace=workspace).report.details["lineage"]
    assert [(row[0], row[1]) for row in lineage] == [
        ("this version", grandchild.digest),
        ("parent bundle", child.digest),
        ("parent bundle", bundle.digest),
        ("trained model", "sha256:source"),
        ("data", "sha256:data"),
    ]


def test_a_parent_that_was_never_registered_is_said_so(
    workspace: Workspace, bundle: Bundle, tmp_path: Path
) -> None:
    child = make_bundle(tmp_path / "child", content=b"small", parent=bundle)
    register(child, "churn", workspace=workspace)
    lineage = show_version("churn", workspace=workspace).report.details["lineage"]
    assert lineage[1] == ["parent bundle", bundle.digest, "", "not registered"]


def register_many(home: str, bundle: str, worker: int) -> None:
    workspace = open_workspace(home)
    for _ in range(3):
        opened = Bundle.open(bundle)
        made = register(opened, "churn", workspace=workspace, alias=f"worker-{worker}")
        assert read_version(f"churn@worker-{worker}", workspace=workspace) == made.noun


def test_eight_processes_get_consecutive_versions(bundle: Bundle, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    calls = [(register_many, (home, str(bundle.path), worker)) for worker in range(8)]
    assert processes.run_all(calls) == [0] * 8
    workspace = open_workspace(home)
    versions = list_versions("churn", workspace=workspace)
    assert [item.version for item in versions] == list(range(24, 0, -1))
    assert sorted(alias for item in versions for alias in item.aliases) == [
        f"worker-{worker}" for worker in range(8)
    ]


def move_alias(home: str, first: int) -> None:
    workspace = open_workspace(home)
    for number in range(10):
        set_alias("churn", (first + number) % 2 + 1, "champion", workspace=workspace)


def test_an_alias_is_never_missing_while_it_moves(bundle: Bundle, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    workspace = open_workspace(home)
    for _ in range(2):
        register(bundle, "churn", workspace=workspace, alias="champion")
    movers = [processes.start(move_alias, home, first) for first in range(2)]
    while any(mover.is_alive() for mover in movers):
        assert read_version("churn@champion", workspace=workspace).version in (1, 2)
    assert [processes.finish(mover) for mover in movers] == [0, 0]
