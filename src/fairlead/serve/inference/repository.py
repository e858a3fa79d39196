"""The models of a service: several of them, several versions of each, changed while they answer.

A new version is opened and warmed beside the old one, takes over between two requests, and the
old one closes once its last request is answered. Everything but the opening happens in the event
loop's thread, so whoever takes a dataplane and uses it without waiting in between never meets a
closed one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead.core.bundle import DIGESTS, Bundle
from fairlead.core.errors import (
    FairleadError,
    NotFoundError,
    UnavailableError,
)
from fairlead.core.files import digest_file, user_path
from fairlead.serve.inference.dataplane import Answer, Dataplane, InferenceRequest
from fairlead.serve.inference.loading import Loader, OpenPlane
from fairlead.serve.inference.model_versions import (
    UNLOADED,
    LoadOrder,
    Model,
    ModelSource,
    ModelState,
    Version,
    n_latest,
    states_of,
    unknown_parameter,
)

__all__ = ["ModelSource", "ModelState", "Repository"]

_log = logging.getLogger(__name__)

_TRIES = 3


class Repository:
    """Finds the dataplane of a model, and loads and unloads models; lives in one event loop."""

    def __init__(
        self,
        sources: Sequence[ModelSource],
        open_plane: OpenPlane,
        *,
        version_policy: str = "all",
        memory_limit_bytes: int | None = None,
        remembered: Mapping[str, Any] | None = None,
        remember: Callable[[dict[str, Any]], None] | None = None,
        is_replacement: bool = False,
    ) -> None:
        """Read the bundles; nothing is loaded yet.

        Args:
            sources: What to serve, at least one bundle; two of one name are two versions. The
                first one's model is the default model.
            open_plane: Loads a bundle.
            version_policy: `all`, or `latest:N` for the N newest versions of each model.
            memory_limit_bytes: Memory that this process may hold; models that were not used for
                longest are unloaded above it, and loaded again when somebody asks for them.
            remembered: What `remember` got last, possibly from a process before this one; it
                holds only for the same sources.
            remember: Called with a JSON document after every change that a restart shall repeat.
            is_replacement: Whether this takes the place of one that ended while its service went
                on: it holds what its siblings hold. A service that starts loads its first model.

        Raises:
            NotFoundError: A bundle does not exist.
            BundleError: A bundle is damaged.
            UsageError: The version policy is none.
        """
        n_latest(version_policy)
        self._policy = version_policy
        self._remember = remember
        self._models: dict[str, Model] = {}
        self._routes: dict[tuple[str | None, str | None], Version] = {}
        self._changing = asyncio.Lock()
        self._is_overruled = False
        self._loader = Loader(open_plane, self._loaded, memory_limit_bytes)
        self._tick = self._loader.tick
        for source in sources:
            self._add(source)
        self._given = [
            [name, str(path)] for name, model in self._models.items() for path in model.paths
        ]
        self._default_name = next(iter(self._models))
        self._recall(remembered or {})
        if not is_replacement:
            self._want_first()

    @property
    def version_policy(self) -> str:
        """Which versions are loaded: `all`, or `latest:N`."""
        return self._policy

    @property
    def default_name(self) -> str:
        """Name of the model that answers where a request names none."""
        return self._default_name

    def names(self) -> tuple[str, ...]:
        """Return the names of all models, loaded or not."""
        return tuple(self._models)

    def versions(self, name: str | None = None) -> tuple[str, ...]:
        """Return the versions of a model, the one that answers by default first.

        Raises:
            NotFoundError: There is no such model.
        """
        model = self._model(name)
        order = model.active("all") if model.versions else []
        return tuple(dict.fromkeys(id_ for version in order for id_ in version.ids))

    def bundle(self, name: str | None = None, version: str | None = None) -> Bundle:
        """Return the bundle of a version, loaded or not; of the default one when it is None.

        Raises:
            NotFoundError: There is no such model or version.
        """
        return self._version(name, version).bundle

    def dataplane(self, name: str | None = None, version: str | None = None) -> Dataplane:
        """Return what answers a model's requests; use it before you wait for anything.

        Args:
            name: The model; None for the default one.
            version: A version; None for the one that answers by default.

        Raises:
            NotFoundError: There is no such model or version.
            UnavailableError: It is not loaded; `obtain` may help.
        """
        found = self._routes.get((name, version))
        if found is None or found.plane is None:
            raise self._unavailable(name, self._version(name, version))
        found.used = self._tick()
        return found.plane

    async def obtain(self, name: str | None = None, version: str | None = None) -> Dataplane:
        """Like `dataplane`, but load first what was unloaded for want of memory.

        Raises:
            NotFoundError: There is no such model or version.
            UnavailableError: It was unloaded on purpose, or cannot be loaded.
        """
        for _ in range(_TRIES):
            try:
                return self.dataplane(name, version)
            except UnavailableError:
                wanted = self._version(name, version)
                if not wanted.is_wanted:
                    raise
                await self._demand(name, wanted)
        return self.dataplane(name, version)

    async def infer(self, request: InferenceRequest, name: str | None = None) -> Answer:
        """Answer one request of a model; see `Dataplane.infer`.

        Raises:
            NotFoundError: There is no such model or version.
            UnavailableError: It is not loaded.
        """
        plane = await self.obtain(name, request.version)
        return await plane.infer(request)

    def is_ready(self, name: str | None = None, version: str | None = None) -> bool:
        """Return whether a model takes requests now, if need be after loading it again.

        Raises:
            NotFoundError: There is no such model or version.
        """
        found = self._version(name, version)
        return found.plane is not None or found.is_wanted

    def is_loaded(self, name: str | None = None) -> bool:
        """Return whether the version that answers by default is in memory.

        Raises:
            NotFoundError: There is no such model.
        """
        return self._version(name, None).plane is not None

    def index(self, ready: bool | None = None) -> list[ModelState]:
        """Return every version of every model, or only those that are ready or that are not."""
        states = states_of(self._models.values())
        return [s for s in states if ready is None or ready == (s.state == "READY")]

    def describe(self, name: str) -> list[tuple[Version, bool]]:
        """Return the versions of a model, newest first, and which one answers by default.

        Raises:
            NotFoundError: There is no such model.
        """
        model = self._model(name)
        return [(version, version is model.default) for version in model.newest_first()]

    def start(self) -> None:
        """Load what is wanted, before the event loop runs.

        What does not fit into the memory limit is left for its first request.

        Raises:
            ModelError: A model cannot be loaded.
            UntrustedError: Loading would run code that nobody approved.
            UnavailableError: Not even one model fits into the memory limit.
        """
        for model in self._models.values():
            for version in model.active(self._policy):
                if version.is_wanted:
                    self._loader.open_first(model.name, version)
        self._reroute()
        if self._is_overruled:
            self._note()

    async def load(self, name: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Load a model, or take up what changed in the folders of its bundles.

        Args:
            name: The model; an unknown one needs the parameter `bundle`.
            parameters: `bundle`: folder of a bundle to add as a version, or a list of them;
                `version`: load only this one; `default`: true to let what is loaded answer
                requests that name no version.

        Raises:
            NotFoundError: There is no such model, version or bundle.
            UsageError: A parameter is unknown or of the wrong type.
            BundleError: A bundle is damaged; what answered before goes on.
            ModelError: It cannot be loaded; what answered before goes on.
            UnavailableError: It does not fit into the memory limit.
        """
        order = LoadOrder.parse(parameters or {})
        async with self._changing:
            model = self._models.get(name) or Model(name)
            if not model.versions and not order.bundles:
                raise self._unknown(name)
            trial, replaced = await self._changed(model, order.bundles)
            chosen = self._choose(trial, order)
            try:
                for version in chosen:
                    await self._loader.bring_up(name, version)
            except BaseException:
                for version in trial.versions.values():
                    if version.id not in model.versions:
                        self._loader.retire(version)
                raise
            self._models[name] = trial
            self._reroute()
            for version in replaced:
                self._loader.retire(version)
            self._note()

    async def unload(self, name: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Unload a model or one version; requests that it has are answered first.

        Args:
            name: The model.
            parameters: `version`: unload only this one.

        Raises:
            NotFoundError: There is no such model or version.
        """
        given = dict(parameters or {})
        only = given.pop("version", None)
        given.pop("unload_dependents", None)  # there are none: every model stands alone
        if given:
            raise unknown_parameter("unload", given, ("version",))
        async with self._changing:
            model = self._model(name)
            chosen = [model.find(str(only))] if only is not None else list(model.versions.values())
            for version in chosen:
                version.is_wanted, version.reason = False, UNLOADED
                self._loader.retire(version)
            self._note()

    async def set_default(self, name: str, version: str) -> None:
        """Let another version answer the requests that name none, from the next one on.

        Raises:
            NotFoundError: There is no such model or version.
            UnavailableError: It cannot be loaded; the old one goes on.
        """
        async with self._changing:
            model = self._model(name)
            chosen = model.find(version)
            await self._loader.bring_up(name, chosen)
            model.declared = chosen.id
            self._reroute()
            self._note()

    async def refresh(
        self, load: Callable[[str], Awaitable[None]] | None = None
    ) -> tuple[str, ...]:
        """Take up what changed in the folders of loaded models; return the models that changed.

        A bundle that is damaged, or still being copied, is left for the next time.

        Args:
            load: Called with the name of a model that changed; None loads it here.
        """
        loop = asyncio.get_running_loop()
        changed = []
        for name, model in list(self._models.items()):
            if not await loop.run_in_executor(None, _has_changed, model):
                continue
            try:
                await (load or self.load)(name)
                changed.append(name)
            except FairleadError as exc:
                _log.warning("`%s` changed on disk, but goes on as it was: %s", name, exc)
        return tuple(changed)

    async def watch(
        self, every_s: float | None, load: Callable[[str], Awaitable[None]] | None = None
    ) -> None:
        """Look for changed folders every so many seconds until cancelled; None never looks."""
        while every_s is not None:
            await asyncio.sleep(every_s)
            await self.refresh(load)

    async def drain(self) -> None:
        """Wait until what was replaced has closed, and for requests that nobody waits for."""
        await self._loader.finish()
        for version in self._loaded():
            if version.plane is not None:
                await version.plane.drain()

    def close(self) -> None:
        """Free every model."""
        self._loader.close()
        for version in self._loaded():
            if version.plane is not None:
                version.plane.close()
                version.plane = None
        self._routes.clear()

    def _loaded(self) -> Iterator[Version]:
        for model in self._models.values():
            yield from (item for item in model.versions.values() if item.plane is not None)

    def _model(self, name: str | None) -> Model:
        model = self._models.get(self._default_name if name is None else name)
        if model is None:
            raise self._unknown(name or "")
        return model

    def _version(self, name: str | None, version: str | None) -> Version:
        model = self._model(name)
        return model.default if version is None else model.find(version)

    def _unknown(self, name: str) -> NotFoundError:
        known = ", ".join(f"`{item}`" for item in self._models)
        return NotFoundError(f"there is no model {name[:80]!r}", hint=f"there is {known}")

    def _unavailable(self, name: str | None, version: Version) -> UnavailableError:
        what = f"version {version.id} of `{name or self._default_name}`"
        return UnavailableError(
            f"{what} is not loaded: {version.reason or 'not yet'}",
            hint="load it with POST /v2/repository/models/NAME/load, or ask for another",
        )

    def _add(self, source: ModelSource) -> Version:
        """Read a bundle and put it among the versions of its model."""
        bundle = Bundle.open(source.path)
        name = source.name or bundle.name
        model = self._models.setdefault(name, Model(name))
        if bundle.path not in model.paths:
            model.paths.append(bundle.path)
        return model.versions.setdefault(bundle.version, Version(bundle, bundle.path))

    async def _changed(self, model: Model, added: Sequence[Path]) -> tuple[Model, list[Version]]:
        """Read the folders of a model again; return it as it will be, and what it loses."""
        loop = asyncio.get_running_loop()
        trial = Model(model.name, list(model.paths), dict(model.versions), model.declared)
        replaced = []
        for path in [*model.paths, *added]:
            old = trial.of_path(path)
            bundle = await loop.run_in_executor(None, _reopened, path, old)
            if bundle.path not in trial.paths:
                trial.paths.append(bundle.path)
            if bundle.version not in trial.versions:
                trial.versions[bundle.version] = Version(bundle, bundle.path)
            if old is not None and old.id != bundle.version:
                replaced.append(trial.versions.pop(old.id))
                if trial.declared == old.id:
                    trial.declared = bundle.version
        return trial, replaced

    def _choose(self, model: Model, order: LoadOrder) -> list[Version]:
        """Return what a load shall load, and declare the default where it says so."""
        named = [model.find(order.version)] if order.version is not None else []
        if order.is_default:
            paths = [user_path(path).resolve() for path in order.bundles]
            fresh = [item for item in model.newest_first() if item.path in paths]
            model.declared = next(iter([*named, *fresh, model.default])).id
        return named or model.active(self._policy)

    async def _demand(self, name: str | None, version: Version) -> None:
        """Load a version because requests wait for it; all of them wait for the same load."""
        if version.loading is None:
            task = asyncio.get_running_loop().create_task(
                self._load_demanded(name or self._default_name, version)
            )
            version.loading = task
            task.add_done_callback(lambda done: _forget_load(version, done))
        await asyncio.shield(version.loading)

    async def _load_demanded(self, name: str, version: Version) -> None:
        async with self._changing:
            if version.is_wanted:
                await self._loader.bring_up(name, version)

    def _reroute(self) -> None:
        """Let requests find the versions there are now."""
        routes: dict[tuple[str | None, str | None], Version] = {}
        for name, model in self._models.items():
            names = (name, None) if name == self._default_name else (name,)
            for one in names:
                for version in model.versions.values():
                    routes |= {(one, id_): version for id_ in version.ids}
                routes[one, None] = model.default
        self._routes = routes

    def _note(self) -> None:
        """Write down what a restart shall repeat."""
        if self._remember is None:
            return
        models = {
            name: {
                "bundles": [str(path) for path in model.paths],
                "default": model.declared,
                "unloaded": [v.id for v in model.versions.values() if v.reason == UNLOADED],
            }
            for name, model in self._models.items()
        }
        self._remember({"given": self._given, "models": models})

    def _recall(self, document: Mapping[str, Any]) -> None:
        """Repeat what was changed while a server of the same bundles ran."""
        if document.get("given") != self._given:
            return
        for name, item in document.get("models", {}).items():
            self._recall_bundles(name, item["bundles"])
            model = self._models.get(name)
            if model is None:
                continue
            model.declared = item["default"]
            for version in model.versions.values():
                if version.id in item["unloaded"]:
                    version.is_wanted, version.reason = False, UNLOADED

    def _want_first(self) -> None:
        """Load the first model: whoever starts a service wants an answer from it."""
        first = self._models[self._default_name].default
        self._is_overruled = not first.is_wanted
        first.is_wanted, first.reason = True, ""

    def _recall_bundles(self, name: str, folders: Sequence[str]) -> None:
        known = self._models[name].paths if name in self._models else []
        for folder in folders:
            if Path(folder) in known:
                continue
            try:
                self._add(ModelSource(name, Path(folder)))
            except FairleadError as exc:
                _log.warning("`%s` was served from %s as well: %s", name, folder, exc)


def _forget_load(version: Version, done: asyncio.Task[None]) -> None:
    version.loading = None
    if not done.cancelled():
        done.exception()  # the requests that wait for it raise it


def _reopened(path: Path, old: Version | None) -> Bundle:
    """Read a bundle again, unless its folder still holds the same one."""
    return old.bundle if old is not None and not _differs(old) else Bundle.open(path)


def _differs(version: Version) -> bool:
    try:
        return digest_file(version.path / DIGESTS) != version.bundle.digest
    except OSError:
        return True


def _has_changed(model: Model) -> bool:
    """Say whether a folder holds another bundle; one that was removed holds none."""
    return any(
        _differs(version)
        for version in model.versions.values()
        if (version.path / DIGESTS).exists()
    )
