"""Every error Fairlead raises on purpose, as one tree.

FairleadError
├── UsageError (ValueError)            wrong option, unknown id, text that cannot be read
│   ├── ConfigError                    a setting that is unknown or out of range
│   └── PlanError                      a plan file that cannot be bound or run
├── ModelError (ValueError)            a model that cannot be read, converted or executed
│   ├── UntrustedError                 a model whose loading would run code that nobody approved
│   └── ModelCodeError                 code in a bundle that broke, not for want of good input
├── DataError (ValueError)             rows that do not fit: missing column, empty, unreadable
│   └── SignatureError                 a tensor of the wrong name, dtype or shape
├── BundleError (ValueError)           a bundle that is incomplete or of another format
│   └── IntegrityError                 a file of the bundle whose bytes changed
├── RefusedError                       the answer is no: a gate or a budget was not met
│   ├── BudgetError                    the accuracy, latency or size budget is broken
│   └── GateError                      a step of a plan did not pass
├── NotFoundError (LookupError)        a run, version, service or file that does not exist
├── ConflictError                      the state already holds something that excludes this
├── WorkspaceError (OSError)           the workspace cannot be read or written
├── AccessError (PermissionError)      a caller that may not do what it asks
│   ├── UnauthenticatedError           no credentials, or credentials that do not hold
│   ├── ForbiddenError                 a known caller without the right
│   └── RateLimitedError               a known caller that asks more often than it may
├── EndpointError (ConnectionError)    a server that cannot be reached, started or understood
│   ├── DeadlineError (TimeoutError)   no answer within the time the caller gave
│   ├── PortInUseError                 another process holds the port
│   ├── OverloadedError                the server refused work to protect itself
│   └── UnavailableError               a model that the server knows but does not hold now
└── MissingExtraError (ImportError)    an optional library that is not installed

`entrypoints.problem` maps each of them to an exit code and an HTTP status.
"""

from __future__ import annotations

from typing import ClassVar, Self


class FairleadError(Exception):
    """Base class: catch this to catch everything Fairlead raises on purpose.

    Attributes:
        code: Stable kebab-case identifier of the kind of error.
        hint: The next step for the reader, one sentence.
    """

    code: ClassVar[str] = "fairlead"

    def __init__(self, message: str, *, hint: str) -> None:
        """Say what was found and expected in `message`, the next step in `hint`."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(FairleadError, ValueError):
    """The caller asked for something that does not exist or cannot be read."""

    code = "usage"


class ConfigError(UsageError):
    """A setting is unknown, of the wrong type or out of range."""

    code = "config"


class PlanError(UsageError):
    """A plan cannot be made, read or bound to steps."""

    code = "plan"


class ModelError(FairleadError, ValueError):
    """A model cannot be read, converted or executed."""

    code = "model"


class UntrustedError(ModelError):
    """Loading the model would execute code that nobody approved."""

    code = "untrusted"


class ModelCodeError(ModelError):
    """Code that came with a model broke; its message names the function, its cause the reason."""

    code = "model-code"


class DataError(FairleadError, ValueError):
    """Rows do not fit: unreadable, empty, or a column is missing."""

    code = "data"


class SignatureError(DataError):
    """A tensor has the wrong name, dtype or shape."""

    code = "signature"


class BundleError(FairleadError, ValueError):
    """A bundle is incomplete, or written in a format this version does not read."""

    code = "bundle"


class IntegrityError(BundleError):
    """A file of the bundle does not have the digest it was written with."""

    code = "integrity"


class RefusedError(FairleadError):
    """The answer is no: what was asked for was measured and did not pass."""

    code = "refused"


class BudgetError(RefusedError):
    """The accuracy, latency or size budget is broken."""

    code = "budget"


class GateError(RefusedError):
    """A step of a plan did not pass its gate."""

    code = "gate"


class NotFoundError(FairleadError, LookupError):
    """A run, version, service or file does not exist."""

    code = "not-found"


class ConflictError(FairleadError):
    """The state already holds something that excludes what was asked for."""

    code = "conflict"


class WorkspaceError(FairleadError, OSError):
    """The workspace cannot be read or written."""

    code = "workspace"


class AccessError(FairleadError, PermissionError):
    """A caller may not do what it asks.

    Attributes:
        caller: Who was refused, by name, where that is known; never a secret.
    """

    code = "access"
    caller: str = ""

    def of(self, caller: str) -> Self:
        """Say who was refused, and return the error."""
        self.caller = caller
        return self


class UnauthenticatedError(AccessError):
    """The caller showed no credentials, or some that do not hold."""

    code = "unauthenticated"


class ForbiddenError(AccessError):
    """The caller is known and lacks the right."""

    code = "forbidden"


class RateLimitedError(AccessError):
    """The caller asks more often than it may.

    Attributes:
        retry_after_s: Seconds after which it may ask again.
    """

    code = "rate-limited"

    def __init__(self, message: str, *, hint: str, retry_after_s: float = 1.0) -> None:
        """Say how long to wait, in seconds, beside what was found."""
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class EndpointError(FairleadError, ConnectionError):
    """A server cannot be reached, started or understood."""

    code = "endpoint"


class DeadlineError(EndpointError, TimeoutError):
    """No answer came within the time that the caller gave."""

    code = "deadline"


class PortInUseError(EndpointError):
    """Another process already listens on the port."""

    code = "port-in-use"


class OverloadedError(EndpointError):
    """The server refused the request to protect the ones it already holds.

    Attributes:
        retry_after_s: Seconds after which it will probably have room.
    """

    code = "overloaded"

    def __init__(self, message: str, *, hint: str, retry_after_s: float = 1.0) -> None:
        """Say how long to wait, in seconds, beside what was found."""
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class UnavailableError(EndpointError):
    """The server knows the model, but does not hold it now: unloaded, loading or failed."""

    code = "unavailable"


class MissingExtraError(FairleadError, ImportError):
    """An optional library is not installed."""

    code = "missing-extra"
