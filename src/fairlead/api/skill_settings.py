"""The settings of every skill, found by its card, with the words that document them."""

from __future__ import annotations

import ast
import inspect
from functools import lru_cache
from importlib import import_module
from itertools import pairwise
from textwrap import dedent
from typing import Any

from fairlead.core.card import SkillCard
from fairlead.core.values import Config

__all__ = ["config_of", "settings_schema"]


def config_of(card: SkillCard) -> type[Config]:
    """Return the class that checks the settings which a skill's verb takes."""
    module = import_module(f"fairlead.{card.concern}.{card.name}")
    verb = inspect.signature(getattr(module, card.verb), eval_str=False)
    named = str(verb.parameters["config"].annotation).split("|")[0].strip()
    found: type[Config] = getattr(module, named)
    return found


@lru_cache(maxsize=32)
def settings_schema(config: type[Config]) -> dict[str, Any]:
    """Return the JSON schema of a config; every setting says what it is."""
    schema = config.model_json_schema()
    schema = dict(_inlined(schema, schema.pop("$defs", {})))
    words = _words(config)
    for name, described in schema["properties"].items():
        described.setdefault("description", words.get(name, name))
        described.pop("title", None)
    return schema


def _inlined(node: Any, defined: dict[str, Any]) -> Any:  # noqa: ANN401 (JSON)
    """Put definitions where they are referred to, so that the schema can stand in another one."""
    if isinstance(node, list):
        return [_inlined(item, defined) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(defined[node["$ref"].rpartition("/")[2]], defined)
    return {key: _inlined(item, defined) for key, item in node.items()}


def _words(config: type[Config]) -> dict[str, str]:
    """Read the docstring under each field; pydantic could, but for every class at import."""
    found: dict[str, str] = {}
    for kind in reversed(config.__mro__):
        if issubclass(kind, Config) and kind is not Config:
            [made] = ast.parse(dedent(inspect.getsource(kind))).body
            if isinstance(made, ast.ClassDef):
                found |= _documented(made.body)
    return found


def _documented(body: list[ast.stmt]) -> dict[str, str]:
    found = {}
    for field, after in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
            name, text = field.target, after.value
            if isinstance(name, ast.Name) and isinstance(text, ast.Constant):
                found[name.id] = " ".join(str(text.value).split())
    return found
