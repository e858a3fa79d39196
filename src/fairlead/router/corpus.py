"""The labelled utterances that ship with the package, and how they are split.

One file per stratum under `data/corpus`. A line that begins with `= ` names the answer of the
lines below it: skills by their short names in order (`quantization > serving`), a question
(`?deployment-target`) or a neighbour (`!llm-specialist`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib import resources

from fairlead.core.values import Value

__all__ = ["Utterance", "load_corpus", "parse_corpus"]

_HELD_BACK_OF_TEN = 0


class Utterance(Value):
    """One problem in the words of a user, and the answer it should get."""

    text: str
    """What the user wrote."""
    label: str
    """Short skill names joined by ` > `, or `?question`, or `!neighbour`."""
    stratum: str
    """Name of the file it stands in."""

    @property
    def kind(self) -> str:
        """Kind of the answer: `route`, `clarify` or `redirect`."""
        return {"?": "clarify", "!": "redirect"}.get(self.label[0], "route")

    @property
    def skills(self) -> tuple[str, ...]:
        """Short names of the skills in order; empty unless the answer is a route."""
        return tuple(self.label.split(" > ")) if self.kind == "route" else ()

    @property
    def digest(self) -> str:
        """What the text is known by, in 40 hexadecimal digits."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    @property
    def fold(self) -> int:
        """A number from 0 to 9 that depends on the text alone."""
        return int(self.digest, 16) % 10

    @property
    def is_held_back(self) -> bool:
        """Whether nothing may be trained or tuned on it."""
        return self.fold == _HELD_BACK_OF_TEN


def parse_corpus(source: str, stratum: str) -> Iterator[Utterance]:
    """Read the utterances of one file.

    Examples:
        >>> source = chr(10).join(["= serving > monitoring", "deploy and watch it"])
        >>> [found] = parse_corpus(source, "demo")
        >>> found.skills
        ('serving', 'monitoring')
    """
    label = ""
    for line in source.splitlines():
        if line.startswith("= "):
            label = line[2:].strip()
        elif line.strip():
            yield Utterance(text=line.strip(), label=label, stratum=stratum)


def load_corpus() -> list[Utterance]:
    """Return every utterance that ships with the package, in a fixed order."""
    folder = resources.files("fairlead.router") / "data" / "corpus"
    found: list[Utterance] = []
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        text = entry.read_text(encoding="utf-8")
        found += parse_corpus(text, entry.name.removesuffix(".txt"))
    return found
