"""The guard: admits a request or says why not, once per request, before the body is read.

Credentials are tried in this order: the service's own admin token, an API key, a token of an
identity provider, a client's certificate. One that is shown and does not hold is refused; there
is no falling back to a weaker one.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field

from fairlead.core.errors import (
    AccessError,
    ForbiddenError,
    RateLimitedError,
    UnauthenticatedError,
    WorkspaceError,
)
from fairlead.serve.inference.security.audit import AuditLog
from fairlead.serve.inference.security.callers import ANYONE, Caller, GuardedRequest
from fairlead.serve.inference.security.config import SecurityConfig
from fairlead.serve.inference.security.endpoints import Kind, kind_of, means_default_model
from fairlead.serve.inference.security.keys import KEY_PREFIX, ApiKey, KeyRing
from fairlead.serve.inference.security.rate_limits import Buckets, LocalBuckets
from fairlead.serve.inference.security.tokens import KeysPendingError, TokenVerifier

__all__ = ["Guard", "GuardParts", "is_loopback"]

_SERVICE = Caller("service", may_admin=True)
_SHOW = "send `Authorization: Bearer KEY` or `X-API-Key: KEY`; `fairlead serve keys add` makes one"
_READS = frozenset({"GET", "HEAD"})
_STATUSES: dict[type[AccessError], int] = {
    UnauthenticatedError: 401,
    ForbiddenError: 403,
    RateLimitedError: 429,
}


@dataclass(frozen=True)
class GuardParts:
    """What a guard decides by.

    Attributes:
        config: The security file, or the defaults.
        host: Address that the server listens on.
        default_model: Model that a request without a name means.
        admin_token: The service's own token.
        is_token_chosen: Whether somebody chose that token; else it was made up, and opens the
            server to this machine only.
        keys: The workspace's API keys.
        tokens: Believes an identity provider, or None.
        buckets: Counts requests.
        audit: Where calls are written down, or None.
    """

    config: SecurityConfig
    host: str
    default_model: str
    admin_token: str = field(repr=False)
    is_token_chosen: bool = False
    keys: KeyRing | None = None
    tokens: TokenVerifier | None = None
    buckets: Buckets = field(default_factory=LocalBuckets)
    audit: AuditLog | None = None


class Guard:
    """Admits requests; safe to call from several threads."""

    def __init__(self, parts: GuardParts) -> None:
        """Decide what does not change while the server runs."""
        self._parts = parts
        self._config = parts.config
        self._is_loopback = is_loopback(parts.host)
        tls = parts.config.tls
        self._takes_certificates = tls is not None and tls.client_ca is not None
        self._bearer = f"Bearer {parts.admin_token}".encode()
        self._has_providers = parts.tokens is not None or self._takes_certificates
        self._is_limiting = parts.config.limits.anonymous_rate_rps is not None

    @property
    def needs_credentials(self) -> bool:
        """Whether inference needs credentials: a key was made, or a provider is configured."""
        keys = self._parts.keys
        return self._has_providers or (keys is not None and keys.has_keys)

    @property
    def is_open(self) -> bool:
        """Whether `admit` may be left out for inference at this moment; cheap to ask."""
        keys = self._parts.keys
        if keys is not None:
            keys.refresh()
        return not (self.needs_credentials or self._is_limiting or self._config.audit.all_requests)

    def admit(self, request: GuardedRequest) -> Caller:
        """Return who asks.

        Raises:
            UnauthenticatedError: It shows no credentials, or some that do not hold (401).
            ForbiddenError: It lacks the right (403).
            RateLimitedError: It asks more often than it may (429, `retry_after_s`).
            WorkspaceError: It would change how the server is run, and the audit log cannot be
                written (507).
        """
        try:
            return self._noted(request, self._admitted(request))
        except KeysPendingError:
            raise
        except AccessError as exc:
            self._note_refused(request, exc)
            raise

    async def admit_soon(self, request: GuardedRequest) -> Caller:
        """Like `admit`, and wait where a token is signed by a key that must be fetched first."""
        try:
            return self.admit(request)
        except KeysPendingError as exc:
            await asyncio.wrap_future(exc.fetch)
        try:
            return self.admit(request)
        except KeysPendingError as exc:
            self._note_refused(request, exc)
            raise

    def conclude(self, request: GuardedRequest, caller: Caller, status: int) -> None:
        """Tell how an admitted request ended, for the audit log; cheap where nothing is kept."""
        audit = self._parts.audit
        if audit is None:
            return
        kind = kind_of(request.path)
        is_admin = request.is_admin or kind in {"admin", "repository"}
        if not is_admin and not self._config.audit.all_requests:
            return
        audit.write(
            "admin" if is_admin else "requests",
            caller=caller.name,
            peer=request.peer,
            method=request.method,
            path=request.path,
            status=status,
            model=request.model,
            call=caller.call,
        )

    def exposure(self) -> list[str]:
        """Say in sentences who may do what, for people who start a server off loopback."""
        if self._is_loopback:
            return []
        host = self._parts.host
        said = [
            f"inference on {host} needs credentials"
            if self.needs_credentials
            else f"inference and model metadata are open to everyone who reaches {host}; "
            "`fairlead serve keys add NAME` closes them",
        ]
        if self._config.tls is None:
            said.append("connections are not encrypted; give --security with [tls]")
        if not self._may_administer_remotely:
            said.append("administration is refused from other machines until there are keys")
        if self._config.metrics_access == "open":
            said.append("/metrics is open")
        return said

    @property
    def _may_administer_remotely(self) -> bool:
        return self._is_loopback or self._parts.is_token_chosen or self.needs_credentials

    def _noted(self, request: GuardedRequest, caller: Caller) -> Caller:
        """Write down that a change begins, before it does; others are told of when they end."""
        audit = self._parts.audit
        if audit is None or request.method in _READS:
            return caller
        if not request.is_admin and kind_of(request.path) not in {"admin", "repository"}:
            return caller
        call = secrets.token_hex(4)
        if not audit.write(
            "admin",
            caller=caller.name,
            peer=request.peer,
            method=request.method,
            path=request.path,
            status=None,
            model=request.model,
            call=call,
        ):
            raise WorkspaceError(
                "the audit log cannot be written, so nothing is changed",
                hint="make room on its disk, or serve with `is_on = false` under [audit]",
            )
        return caller._replace(call=call)

    def _admitted(self, request: GuardedRequest) -> Caller:
        kind = kind_of(request.path)
        needs_admin = self._needs_admin(kind, request)
        if kind == "health" or (kind == "metrics" and not needs_admin):
            return ANYONE
        keys = self._parts.keys
        if keys is not None:
            keys.refresh()
        caller = self._identify(request)
        if caller is None:
            if needs_admin or self.needs_credentials:
                raise UnauthenticatedError("this endpoint needs credentials", hint=_SHOW)
            self._limit_anonymous(request)
            return ANYONE
        self._check_rights(caller, request, needs_admin=needs_admin)
        return caller

    def _needs_admin(self, kind: Kind, request: GuardedRequest) -> bool:
        if request.is_admin and kind == "model":
            return True
        if kind in {"metrics", "statistics"}:
            access = self._config.metrics_access
            return access == "admin" or (access == "auto" and not self._is_loopback)
        if kind == "repository":
            access = self._config.repository_access
            # A page in a browser on this machine must not unload models behind its user's back.
            is_safe = self._is_loopback and not self.needs_credentials and request.origin is None
            # Nobody administers from elsewhere without credentials, whatever the file says.
            is_known = self._is_loopback or self.needs_credentials
            return not (is_safe if access == "auto" else access == "open" and is_known)
        return kind == "admin"

    def _identify(self, request: GuardedRequest) -> Caller | None:
        shown = request.authorization
        if shown is not None and hmac.compare_digest(
            shown.encode("utf-8", "replace"), self._bearer
        ):
            return self._service_caller(request)
        scheme, _, token = (shown or "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        if request.api_key is not None or token.startswith(KEY_PREFIX):
            return self._by_key(request.api_key or token)
        if token and self._parts.tokens is not None:
            return self._limited_token(self._parts.tokens.verify(token))
        is_asking = kind_of(request.path) in {"model", "statistics"}
        if shown is not None and (self.needs_credentials or not is_asking):
            raise UnauthenticatedError("the credentials do not hold", hint=_SHOW)
        if request.certificate_subject is not None and self._takes_certificates:
            return self._by_certificate(request.certificate_subject)
        return None

    def _service_caller(self, request: GuardedRequest) -> Caller:
        if self._may_administer_remotely or is_loopback(request.peer):
            return _SERVICE
        raise ForbiddenError(
            "administration from another machine needs an API key, a token or a chosen admin token",
            hint="`fairlead serve keys add NAME --admin`, or set FAIRLEAD_ADMIN_TOKEN",
        )

    def _by_key(self, text: str) -> Caller | None:
        ring = self._parts.keys
        key = None if ring is None else ring.find(text)
        if key is None:
            if ring is None or not self.needs_credentials:
                return None  # A server without keys takes what a client sends out of habit.
            raise UnauthenticatedError("the API key is not known", hint=_SHOW)
        why_not = key.why_not()
        if why_not is not None:
            raise UnauthenticatedError(f"the API key {key.id} {why_not}", hint=_SHOW)
        models = None if key.models is None else frozenset(key.models)
        caller = Caller(f"{key.name}#{key.id}", key.is_admin, models)
        self._limit(caller.name, *self._rate(key.rate_rps, key.burst))
        return caller

    def _by_certificate(self, subject: str) -> Caller:
        clients = self._config.clients
        name = f"certificate:{subject[:128]}"
        if clients is None:
            self._limit(name, *self._rate(None, None))
            return Caller(name)
        rights = clients.get(subject)
        if rights is None:
            raise ForbiddenError(
                f"the certificate of {subject[:128]!r} gives no right on this server",
                hint="list its common name under [clients] of the security file",
            ).of(name)
        self._limit(name, *self._rate(rights.rate_rps, rights.burst))
        return Caller(
            name, rights.is_admin, None if rights.models is None else frozenset(rights.models)
        )

    def _limited_token(self, caller: Caller) -> Caller:
        self._limit(caller.name, *self._rate(None, None))
        return caller

    def _check_rights(self, caller: Caller, request: GuardedRequest, *, needs_admin: bool) -> None:
        if needs_admin and not caller.may_admin:
            raise ForbiddenError(
                f"{caller.name} may not administer this server",
                hint="use a key that was made with --admin",
            ).of(caller.name)
        model = request.model
        if model is None and means_default_model(request.path):
            model = self._parts.default_model
        if model is not None and not caller.may_ask(model):
            raise ForbiddenError(
                f"{caller.name} may not ask the model {model[:80]!r}",
                hint=f"it may ask {', '.join(sorted(caller.models or ())) or 'none'}",
            ).of(caller.name)

    def _rate(self, rate_rps: float | None, burst: int | None) -> tuple[float | None, int | None]:
        limits = self._config.limits
        if rate_rps is not None:
            return rate_rps, burst
        return limits.rate_rps, limits.burst if burst is None else burst

    def _limit_anonymous(self, request: GuardedRequest) -> None:
        if self._is_limiting:
            rate_rps = self._config.limits.anonymous_rate_rps
            self._limit(f"address:{request.peer}", rate_rps, None)

    def _limit(self, name: str, rate_rps: float | None, burst: int | None) -> None:
        if rate_rps is None:
            return
        most = float(burst if burst is not None else max(1.0, rate_rps))
        wait_s = self._parts.buckets.take(name, rate_rps, most)
        if wait_s > 0:
            raise RateLimitedError(
                f"{name} may send {rate_rps:g} requests a second",
                hint=f"send it again in {wait_s:.3f} s",
                retry_after_s=wait_s,
            ).of(name)

    def _note_refused(self, request: GuardedRequest, error: AccessError) -> None:
        audit = self._parts.audit
        if audit is None:
            return
        audit.write(
            "refused",
            caller=error.caller or self._name_of(request),
            peer=request.peer,
            method=request.method,
            path=request.path,
            status=_STATUSES.get(type(error), 401),
            model=request.model,
            reason=error.message,
        )

    def _name_of(self, request: GuardedRequest) -> str:
        """Return the public name of a key that was shown, even of one that does not hold."""
        ring = self._parts.keys
        shown = request.api_key or (request.authorization or "").partition(" ")[2].strip()
        key: ApiKey | None = ring.find(shown) if ring is not None and shown else None
        if key is not None:
            return f"{key.name}#{key.id}"
        return request.certificate_subject or ""


def is_loopback(address: str) -> bool:
    """Return whether an address is of this machine only; a name counts only as `localhost`."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address == "localhost"
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_loopback)
