"""Who may ask what: keys, tokens, certificates, rights, limits, and what was refused."""

from fairlead.serve.inference.security.callers import Caller, GuardedRequest
from fairlead.serve.inference.security.guard import Guard

__all__ = ["Caller", "Guard", "GuardedRequest"]
