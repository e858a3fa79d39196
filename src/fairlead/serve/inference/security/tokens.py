"""Bearer tokens of an identity provider (JWT, RFC 7519), believed after RFC 8725.

Only listed algorithms; the algorithm chooses the kind of key, never the other way round, so a
public key is never taken for a shared secret; issuer, audience and expiry must be there.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any

from fairlead.core.errors import ConfigError, ForbiddenError, UnauthenticatedError
from fairlead.core.extras import requires
from fairlead.serve.inference.security.callers import Caller
from fairlead.serve.inference.security.config import JwtConfig
from fairlead.serve.inference.security.jwks import open_key_set

__all__ = ["KeysPendingError", "TokenVerifier"]

_HINT = "ask the identity provider for a new token"
_LONGEST_TOKEN = 16 << 10
_MAX_REMEMBERED = 4096
_REMEMBER_S = 60.0
_MIN_SECRET_BYTES = 32


class KeysPendingError(UnauthenticatedError):
    """The token names a key that is being fetched; whoever can wait should.

    Attributes:
        fetch: Ends with the fetch.
    """

    code = "keys-pending"

    def __init__(self, fetch: Future[None]) -> None:
        """Remember what to wait for."""
        super().__init__("the key that signed the token is being fetched", hint="send it again")
        self.fetch = fetch


class TokenVerifier:
    """Says who a token stands for; remembers verdicts for a minute at most."""

    def __init__(self, config: JwtConfig) -> None:
        """Load keys and secret.

        Raises:
            ConfigError: A file cannot be read, or the secret is too short.
            MissingExtraError: PyJWT is not installed.
        """
        with requires("serve", needed_by="tokens of an identity provider"):
            import jwt

        self._jwt = jwt
        self._config = config
        self._secret = _read_secret(config)
        self._keys = open_key_set(config.jwks_url, config.jwks_file, config.refresh_s)
        self._known: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()
        self._generation = -1

    def verify(self, token: str) -> Caller:
        """Return the caller of a token.

        Raises:
            UnauthenticatedError: It does not hold.
            KeysPendingError: Its key is being fetched.
            ForbiddenError: It holds, and gives no right on this server.
        """
        self._forget_when_keys_change()
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        known = self._known.get(digest)
        if known is not None and time.time() < known[1]:
            return known[0]
        claims = self._claims(token)
        caller = self._caller(claims)
        until = min(time.time() + _REMEMBER_S, float(claims["exp"]) + self._config.leeway_s)
        self._known[digest] = (caller, until)
        if len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)
        return caller

    def _forget_when_keys_change(self) -> None:
        if self._keys is None:
            return
        self._keys.refresh()
        if self._generation != self._keys.generation:
            self._generation = self._keys.generation
            self._known.clear()

    def _claims(self, token: str) -> dict[str, Any]:
        jwt, config = self._jwt, self._config
        if len(token) > _LONGEST_TOKEN:
            raise UnauthenticatedError("the token is too long", hint=_HINT)
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm not in config.algorithms:
                raise UnauthenticatedError(
                    f"the token is signed with {str(algorithm)[:20]!r}, which is not allowed",
                    hint=f"allowed are {', '.join(config.algorithms)}",
                )
            if header.get("crit"):
                raise UnauthenticatedError("the token has unknown critical headers", hint=_HINT)
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key(header.get("kid"), algorithm),
                algorithms=[algorithm],
                issuer=config.issuer,
                audience=config.audience,
                leeway=config.leeway_s,
                options={"require": ["exp", "iss", "aud"], "verify_sub": False},
            )
        except jwt.exceptions.PyJWTError as exc:
            # The text of the library may repeat parts of the token.
            raise UnauthenticatedError(
                f"the token does not hold: {_reason(type(exc).__name__)}", hint=_HINT
            ) from None
        return claims

    def _key(self, key_id: object, algorithm: str) -> Any:  # noqa: ANN401 (a key of PyJWT)
        if algorithm.startswith("HS"):
            return self._secret
        name = key_id if isinstance(key_id, str) else None
        if self._keys is not None:
            found = self._keys.find(name, algorithm)
            if found is not None:
                return found.key
            pending = self._keys.fetch_soon()
            if pending is not None:
                raise KeysPendingError(pending)
        raise UnauthenticatedError("the token is signed with a key that is not known", hint=_HINT)

    def _caller(self, claims: dict[str, Any]) -> Caller:
        config = self._config
        name = f"jwt:{str(claims.get('sub') or claims.get('client_id') or 'unnamed')[:128]}"
        given = claims.get(config.scope_claim, "")
        scopes = given.split() if isinstance(given, str) else given
        found = {item for item in scopes if isinstance(item, str)} if scopes else set()
        prefix = f"{config.scope_prefix}:"
        may_admin = f"{prefix}admin" in found
        if may_admin or f"{prefix}infer" in found or not config.require_scope:
            return Caller(name, may_admin=may_admin)
        one = f"{prefix}infer:"
        models = frozenset(item.removeprefix(one) for item in found if item.startswith(one))
        if not models:
            raise ForbiddenError(
                f"the token has no scope that begins with `{prefix}`",
                hint=f"give it `{prefix}infer`, `{prefix}infer:MODEL` or `{prefix}admin`",
            ).of(name)
        return Caller(name, models=models)


def _read_secret(config: JwtConfig) -> bytes | None:
    if config.secret_file is None:
        return None
    try:
        secret = config.secret_file.read_bytes().strip()
    except OSError as exc:
        raise ConfigError(
            f"the secret file {config.secret_file} cannot be read: {exc.strerror}",
            hint="check the path and its permissions",
        ) from exc
    if len(secret) < _MIN_SECRET_BYTES:
        raise ConfigError(
            f"the secret in {config.secret_file} has {len(secret)} bytes, expected "
            f"{_MIN_SECRET_BYTES} or more",
            hint="write one with `openssl rand -hex 32`",
        )
    return secret


_REASONS = {
    "ExpiredSignatureError": "it has expired",
    "ImmatureSignatureError": "it is not valid yet",
    "InvalidIssuerError": "another issuer made it",
    "InvalidAudienceError": "it is meant for somebody else",
    "InvalidSignatureError": "its signature is wrong",
    "MissingRequiredClaimError": "it lacks `exp`, `iss` or `aud`",
    "DecodeError": "it cannot be read",
}


def _reason(kind: str) -> str:
    return _REASONS.get(kind, kind)
