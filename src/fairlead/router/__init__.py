"""Words and evidence in; a route, a question or a redirect out."""

from fairlead.router.answers import Redirect, Route
from fairlead.router.batch import ask_batch
from fairlead.router.dialogue import Answer, Question, ask

__all__ = ["Answer", "Question", "Redirect", "Route", "ask", "ask_batch"]
