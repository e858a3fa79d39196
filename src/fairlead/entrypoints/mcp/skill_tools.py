"""One tool per skill, its schema made from the skill's settings and the verb's own arguments."""

from __future__ import annotations

import builtins
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Field, WithJsonSchema, create_model

from fairlead.api.skill_settings import config_of, settings_schema
from fairlead.core.card import SkillCard
from fairlead.core.report import Outcome
from fairlead.core.values import Config
from fairlead.entrypoints.mcp.arguments import Arguments
from fairlead.entrypoints.mcp.desk import Desk
from fairlead.entrypoints.mcp.tool import Document, Tool

__all__ = ["skill_tools"]

_OURS: Final = frozenset({"context", "settings", "within", "output", "folder"})
"""Parameters that the session fills in, or that make no sense for a client."""
_ELSEWHERE: Final = frozenset({"run_pipeline"})
"""Verbs that take Python callables; the front door runs plans instead."""
_WORDS: Final = {
    "bundle": "Path of a bundle, or of a model, which is packed first.",
    "data": "Path of rows: Parquet, CSV, JSONL or npz.",
    "labels": "Column of the labels in the rows.",
    "out": "Folder to create.",
    "trust": "Whether code that came with the model may run.",
    "settings": "Settings of the skill; what is left out has its default.",
}
_SIMPLE: Final = (str, int, float, bool, NoneType)


def skill_tools() -> Iterator[Tool]:
    """Make the tools of packing, of every skill, and of stopping what was served."""
    from fairlead import api
    from fairlead.api.packing import pack
    from fairlead.api.serving import stop_service
    from fairlead.catalog import CARDS

    yield _plain_tool("pack", "Pack a model", pack)
    for card in CARDS:
        if card.verb not in _ELSEWHERE:
            yield _skill_tool(card, getattr(api, card.verb))
    yield _plain_tool("stop_service", "Stop a service", stop_service)


def _skill_tool(card: SkillCard, verb: Callable[..., Outcome[Any]]) -> Tool:
    when = "; ".join(card.symptoms)
    ending = " The server ends with this session." if _takes(verb, "within") else ""
    return Tool(
        name=card.verb,
        title=card.title,
        description=f"{card.does.rstrip('.')}. For: {when}. Guide: fairlead://guides/{card.id}."
        + ending,
        arguments=_arguments_of(card.verb, verb, config_of(card)),
        call=_Call(verb),
    )


def _plain_tool(name: str, title: str, verb: Callable[..., Outcome[Any]]) -> Tool:
    summary = (inspect.getdoc(verb) or title).split("\n\n")[0].replace("\n", " ")
    return Tool(name, title, summary, _arguments_of(name, verb, None), _Call(verb))


def _takes(verb: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(verb).parameters


@dataclass(frozen=True, slots=True)
class _Call:
    """Calls a verb with checked arguments."""

    verb: Callable[..., Outcome[Any]]

    def __call__(self, arguments: BaseModel, desk: Desk) -> Document:
        given = {name: getattr(arguments, name) for name in arguments.model_fields_set}
        settings = given.pop("settings", None)
        if isinstance(settings, Config):
            given["settings"] = settings.model_dump(exclude_unset=True)
        if _takes(self.verb, "within"):
            given["within"] = desk.stack
        outcome = self.verb(**given, context=desk.context())
        return outcome.report.model_dump(mode="json", exclude={"plots"})


def _arguments_of(
    name: str, verb: Callable[..., Any], config: type[Config] | None
) -> type[BaseModel]:
    words = {**_WORDS, **_argument_words(inspect.getdoc(verb) or "")}
    types = get_type_hints(verb, None, _Names(verb.__globals__))
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(verb).parameters.values():
        if parameter.name in _OURS or parameter.kind is parameter.VAR_POSITIONAL:
            continue
        is_required = parameter.default is inspect.Parameter.empty
        default = ... if is_required else parameter.default
        described = Field(default, description=words.get(parameter.name, parameter.name))
        fields[parameter.name] = (_wire_type(types[parameter.name]), described)
    if config is not None:
        described = Field(default_factory=config, description=_WORDS["settings"])
        schema = WithJsonSchema(settings_schema(config))
        fields["settings"] = (Annotated[config, schema], described)
    title = "".join(part.title() for part in name.split("_"))
    return create_model(f"{title}Arguments", __base__=Arguments, **fields)


class _Foreign:
    """Stands for a type that only a type checker imports, and that no client can send."""


class _Names(dict[str, Any]):
    """The names that an annotation may use; those of a type checker become `_Foreign`."""

    def __missing__(self, name: str) -> Any:  # noqa: ANN401 (any type)
        if hasattr(builtins, name):
            raise KeyError(name)
        return _Foreign


def _wire_type(kind: Any) -> Any:  # noqa: ANN401 (any type)
    """Return the type as JSON can carry it: paths are text, what has no JSON is `_Foreign`."""
    if kind in _SIMPLE or kind is Any or get_origin(kind) is Literal:
        return kind
    if kind is Path:
        return str
    if get_origin(kind) in (Union, UnionType):
        parts = tuple(_wire_type(part) for part in get_args(kind))
        return Union[tuple(part for part in parts if part is not _Foreign)]  # noqa: UP007
    origin = get_origin(kind)
    is_json = isinstance(origin, type) and issubclass(origin, Mapping | Sequence)
    return kind if is_json else _Foreign


def _argument_words(doc: str) -> dict[str, str]:
    """Read the section `Args:` of a Google docstring."""
    _, _, section = doc.partition("\nArgs:\n")
    body = section.split("\n\n", 1)[0]
    found: dict[str, str] = {}
    name = ""
    for line in body.splitlines():
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2].strip()
        elif name and line.startswith("      "):
            found[name] += f" {line.strip()}"
    return found
