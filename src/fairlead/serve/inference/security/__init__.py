"""Who may ask what: keys, tokens, certificates, rights, limits, and what was refused."""

from fairlead.serve.inference.security.callers import Caller, GuardedRequest
from fairlead.serve.inference.security.config import SecurityConfig, read_security
from fairlead.serve.inference.security.guard import Guard
from fairlead.serve.inference.security.opening import GuardPlan, key_file, open_guard

__all__ = [
    "Caller",
    "Guard",
    "GuardPlan",
    "GuardedRequest",
    "SecurityConfig",
    "key_file",
    "open_guard",
    "read_security",
]
