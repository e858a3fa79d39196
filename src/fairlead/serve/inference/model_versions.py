"""What a repository knows of a model: its bundles, its versions, and which one answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fairlead.core.bundle import Bundle
from fairlead.core.errors import NotFoundError, UsageError
from fairlead.core.files import user_path

if TYPE_CHECKING:
    from fairlead.serve.inference.dataplane import Dataplane

__all__ = [
    "ON_DEMAND",
    "UNLOADED",
    "LoadOrder",
    "Model",
    "ModelSource",
    "ModelState",
    "State",
    "Version",
    "n_latest",
    "name_sources",
    "states_of",
    "unknown_parameter",
]

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})=(.+)")

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]

ON_DEMAND = "loads at its next request"
UNLOADED = "unloaded"


class ModelSource(NamedTuple):
    """A bundle to serve.

    Attributes:
        name: Name of the model; None takes the bundle's own.
        path: Folder of the bundle.
    """

    name: str | None
    path: Path

    @classmethod
    def parse(cls, text: str) -> ModelSource:
        """Read `PATH` or `NAME=PATH`; a folder that exists under the whole text is a path."""
        found = _NAMED.fullmatch(text)
        if found is None or user_path(text).exists():
            return cls(None, user_path(text))
        return cls(found[1], user_path(found[2]))


class ModelState(NamedTuple):
    """One version of a model, as the index of the repository shows it.

    Attributes:
        name: Name of the model.
        version: Its version.
        state: Whether it can answer.
        reason: Why it cannot, or "".
    """

    name: str
    version: str
    state: State
    reason: str = ""


@dataclass(slots=True, eq=False)
class Version:
    """One bundle of a model, loaded or not.

    Attributes:
        bundle: The bundle.
        path: The folder it was opened from; the folder may hold another one by now.
        plane: Answers its requests; None while it is not loaded.
        state: Whether it can answer.
        reason: Why it cannot, or "".
        is_wanted: Whether it may be loaded when somebody asks for it.
        used: Number of the request that used it last; the smallest was not used for longest.
        cost_bytes: Memory that loading it took when it was last measured, 0 before.
        loading: The load under way that requests wait for.
    """

    bundle: Bundle
    path: Path
    plane: Dataplane | None = None
    state: State = "UNAVAILABLE"
    reason: str = ""
    is_wanted: bool = True
    used: int = 0
    cost_bytes: int = 0
    loading: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        """The version."""
        return self.bundle.version

    @property
    def ids(self) -> tuple[str, ...]:
        """The versions that it answers: its own, and that of a candidate beside it."""
        return (self.id,) if self.plane is None else self.plane.versions

    @property
    def expected_bytes(self) -> int:
        """Memory that loading it will take, by the last time or by its size on disk."""
        return self.cost_bytes or 2 * self.bundle.size_bytes


@dataclass(slots=True, eq=False)
class Model:
    """A model with its versions.

    Attributes:
        name: Its name.
        paths: Folders of its bundles, in the order they were given.
        versions: Version → what is known of it.
        declared: The version that was chosen to answer; None takes the newest.
    """

    name: str
    paths: list[Path] = field(default_factory=list)
    versions: dict[str, Version] = field(default_factory=dict)
    declared: str | None = None

    @property
    def default(self) -> Version:
        """The version that answers requests which name none.

        Raises:
            NotFoundError: It has no versions.
        """
        if self.declared in self.versions:
            return self.versions[self.declared]
        if not self.versions:
            raise NotFoundError(f"`{self.name}` has no versions", hint="load one of its bundles")
        return self.newest_first()[0]

    def newest_first(self) -> list[Version]:
        """Return its versions by the time their bundles were made, the latest one first."""
        order = {path: place for place, path in enumerate(self.paths)}
        return sorted(
            self.versions.values(),
            key=lambda v: (v.bundle.manifest.created_at, order.get(v.path, -1)),
            reverse=True,
        )

    def active(self, policy: str) -> list[Version]:
        """Return the versions that a policy wants loaded, the default one first."""
        first = self.default
        others = [version for version in self.newest_first() if version is not first]
        limit = n_latest(policy)
        return [first, *(others if limit is None else others[: limit - 1])]

    def find(self, version: str) -> Version:
        """Return the version of that name.

        Raises:
            NotFoundError: There is none.
        """
        if version in self.versions:
            return self.versions[version]
        for known in self.versions.values():
            if version in known.ids:
                return known
        raise NotFoundError(
            f"`{self.name}` has no version {version[:80]!r}",
            hint=f"its versions are {', '.join(self.versions) or 'none'}",
        )

    def of_path(self, path: Path) -> Version | None:
        """Return the version that was opened from a folder."""
        return next((item for item in self.versions.values() if item.path == path), None)


class LoadOrder(NamedTuple):
    """What a load asks for.

    Attributes:
        bundles: Folders of bundles to add as versions.
        version: The only version to load, or None.
        is_default: Whether what is loaded shall answer requests that name no version.
    """

    bundles: tuple[Path, ...] = ()
    version: str | None = None
    is_default: bool = False

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> LoadOrder:
        """Read the parameters of a load.

        Raises:
            UsageError: One is unknown or of the wrong type.
        """
        given = dict(parameters)
        bundle, version = given.pop("bundle", None), given.pop("version", None)
        is_default = given.pop("default", False)
        if given:
            raise unknown_parameter("load", given, ("bundle", "version", "default"))
        folders = [bundle] if isinstance(bundle, str) else [] if bundle is None else bundle
        is_right = isinstance(folders, list) and all(isinstance(item, str) for item in folders)
        if not is_right or not isinstance(version, str | None) or not isinstance(is_default, bool):
            raise UsageError(
                f"a load has the parameters {str(dict(parameters))[:200]}",
                hint="give `bundle` as text or a list of texts, `version` as text, "
                "`default` as true or false",
            )
        return cls(tuple(user_path(item).resolve() for item in folders), version, is_default)


def unknown_parameter(what: str, given: Mapping[str, Any], known: Sequence[str]) -> UsageError:
    """Return the error for parameters that this server does not have."""
    return UsageError(
        f"`{what}` has no parameter {next(iter(given))[:80]!r}", hint=f"it has {', '.join(known)}"
    )


def name_sources(sources: Sequence[ModelSource], name: str | None) -> tuple[ModelSource, ...]:
    """Give every bundle the name of its model.

    Args:
        sources: Bundles, at least one, with or without a name.
        name: Name for the first one's model, and for those that its other bundles are versions
            of; None takes the bundle's own.

    Raises:
        UsageError: There is none, or the first one has another name already.
        BundleError: A bundle cannot be read.
    """
    if not sources:
        raise UsageError("there is nothing to serve", hint="name at least one bundle")
    first = sources[0]
    if first.name is not None and name not in (None, first.name):
        raise UsageError(
            f"the first model is named {first.name!r} and {name!r}", hint="leave --name out"
        )
    own = [Bundle.open(source.path, verify=False).name for source in sources]
    given = first.name or name or own[0]
    return tuple(
        source._replace(name=source.name or (given if theirs == own[0] else theirs))
        for source, theirs in zip(sources, own, strict=True)
    )


def n_latest(policy: str) -> int | None:
    """Return how many versions `all` (None) or `latest:N` keeps loaded.

    Raises:
        UsageError: It is neither.
    """
    if policy == "all":
        return None
    found = re.fullmatch(r"latest:([1-9]\d{0,5})", policy)
    if found is None:
        raise UsageError(f"{policy!r} is no version policy", hint="use all, or latest:N")
    return int(found[1])


def states_of(models: Iterable[Model]) -> list[ModelState]:
    """Return the index entries of models, their versions newest first."""
    return [
        ModelState(model.name, version.id, version.state, version.reason)
        for model in models
        for version in model.newest_first()
    ]
