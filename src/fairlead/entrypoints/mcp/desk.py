"""What lasts from one call of a tool to the next: dialogues, servers, the workspace."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from fairlead.api.context import Context
from fairlead.core.errors import NotFoundError
from fairlead.core.ports import Progress, SilentProgress
from fairlead.entrypoints.mcp.arguments import AskArguments
from fairlead.router import Question

__all__ = ["Desk", "Dialogue"]

_MOST_DIALOGUES = 1000


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A question that waits for its answer.

    Attributes:
        question: The question.
        given: What was asked, and what measurements may be read from.
    """

    question: Question
    given: AskArguments


@dataclass(frozen=True)
class Desk:
    """The surroundings of the tools of one session.

    Attributes:
        stack: Closes what was started, for example servers, when the session ends.
        progress: Hears how far the work of one call is.
    """

    stack: ExitStack
    progress: Progress = field(default_factory=SilentProgress)
    _dialogues: OrderedDict[str, Dialogue] = field(default_factory=OrderedDict)

    def hearing(self, progress: Progress) -> Desk:
        """Return the same desk for a call whose progress somebody listens to."""
        return replace(self, progress=progress)

    def context(self) -> Context:
        """Open the workspace, as settings of this moment name it.

        Raises:
            WorkspaceError: It cannot be written.
        """
        return Context.open(progress=self.progress)

    def keep(self, dialogue: Dialogue) -> str:
        """Remember an open question; the oldest is forgotten when there are too many.

        Returns:
            The id to give with the answer.
        """
        name = uuid.uuid4().hex[:12]
        self._dialogues[name] = dialogue
        while len(self._dialogues) > _MOST_DIALOGUES:
            self._dialogues.popitem(last=False)
        return name

    def find(self, name: str | None) -> Dialogue:
        """Return a dialogue; the last one when None.

        Raises:
            NotFoundError: Nothing was asked, or the id is unknown.
        """
        wanted = name or next(reversed(self._dialogues), "")
        if wanted not in self._dialogues:
            raise NotFoundError(
                f"there is no dialogue `{wanted}`" if wanted else "no question is open",
                hint="call `ask` with the problem first",
            )
        return self._dialogues[wanted]
