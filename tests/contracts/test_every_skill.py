"""What every skill must pass, whatever it does."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
from pydantic import BaseModel

from fairlead import api
from fairlead.catalog import CARDS
from fairlead.core.errors import ConfigError
from fairlead.core.values import Config

EXTRAS = {"optimize", "serve", "scale", "mlops", "observe"}


def _package(card):
    return importlib.import_module(f"fairlead.{card.concern}.{card.name}")


def _config(card):
    module = importlib.import_module(f"fairlead.{card.concern}.{card.name}.config")
    found = [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Config) and kind is not Config and kind.__module__ == module.__name__
    ]
    assert found, f"{module.__name__} declares no Config"
    return found[0]


@pytest.fixture(params=CARDS, ids=lambda card: card.name)
def card(request):
    return request.param


def test_there_are_ten_with_unique_ids():
    assert len({card.id for card in CARDS}) == len(CARDS) == 10


def test_the_card_names_an_extra_that_exists(card):
    assert card.extra in EXTRAS


def test_the_verb_is_one_of_the_api(card):
    assert callable(getattr(api, card.verb))


def test_the_package_exports_what_it_lists(card):
    package = _package(card)
    assert package.__all__
    assert all(hasattr(package, name) for name in package.__all__)


def test_the_verb_of_the_skill_hands_back_an_outcome(card):
    skill = importlib.import_module(f"fairlead.{card.concern}.{card.name}.skill")
    verb = getattr(skill, card.verb)
    assert "Outcome[" in str(inspect.signature(verb).return_annotation)


def test_settings_are_frozen_and_documented(card):
    config = _config(card)
    made = config()
    name = next(iter(config.model_fields))
    with pytest.raises(ValueError, match="frozen"):
        setattr(made, name, getattr(made, name))


def test_every_setting_has_words(card):
    config = _config(card)
    kinds = [kind for kind in config.__mro__ if issubclass(kind, Config)]
    source = "\n".join(inspect.getsource(kind) for kind in kinds)
    for name, field in config.model_fields.items():
        after = source.split(f"    {name}:", 1)[1]
        assert field.description or '"""' in after.split("\n    ", 2)[1] or '"""' in after, name


def test_an_unknown_setting_is_refused_with_the_known_ones(card):
    with pytest.raises(ConfigError) as caught:
        _config(card).parse({"no_such_setting": 1})
    assert "known settings are" in caught.value.hint


def test_the_default_settings_round_trip(card):
    config = _config(card)
    assert config.parse(config().model_dump()) == config()


def test_a_default_is_never_shared_and_mutable(card):
    for field in _config(card).model_fields.values():
        assert not isinstance(field.default, list | dict | set | BaseModel) or field.frozen


def test_methods_are_a_plain_dict(card):
    methods = importlib.import_module(f"fairlead.{card.concern}.{card.name}.methods")
    registry = getattr(methods, "METHODS", None)
    assert isinstance(registry, dict)
    assert registry
    if card.methods:
        assert tuple(registry) == card.methods


def test_the_guide_is_there_and_in_agent_skills_format(card):
    guide = Path(api.__file__).parents[1] / "guides" / card.id / "SKILL.md"
    head, body = guide.read_text().split("---\n", 2)[1:]
    import yaml

    fields = yaml.safe_load(head)
    assert fields["name"] == card.id
    assert len(fields["name"]) <= 64
    assert 40 <= len(fields["description"]) <= 1024
    assert "```bash" in body
