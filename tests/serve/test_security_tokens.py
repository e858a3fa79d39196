"""Tokens of an identity provider: what holds, and the hostile ones that do not."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from fairlead.core.errors import ConfigError, ForbiddenError, UnauthenticatedError
from fairlead.serve.inference.security import SecurityConfig
from fairlead.serve.inference.security.callers import GuardedRequest
from fairlead.serve.inference.security.config import JwtConfig
from fairlead.serve.inference.security.guard import Guard, GuardParts
from fairlead.serve.inference.security.tokens import KeysPendingError, TokenVerifier

ISSUER, AUDIENCE = "https://issuer.example", "fairlead"
SECRET = b"0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def keys():
    return {
        "RS256": rsa.generate_private_key(65537, 2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }


def key_set(**keys) -> bytes:
    """A JSON Web Key Set of private keys' public halves, by id."""
    writers = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "ED": OKPAlgorithm}
    items = []
    for key_id, key in keys.items():
        kind = next(name for name in writers if type(key).__name__.upper().startswith(name))
        item = writers[kind].to_jwk(key.public_key(), as_dict=True)
        items.append(item | {"kid": key_id, "use": "sig"})
    return json.dumps({"keys": items}).encode()


def claims(**changes):
    now = int(time.time())
    base = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now + 300,
            "scope": "openid fairlead:infer"}  # fmt: skip
    return {key: value for key, value in (base | changes).items() if value is not None}


def signed(key, algorithm, key_id="k", **changes) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers={"kid": key_id})


@pytest.fixture
def verifier(keys, tmp_path):
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set(rs=keys["RS256"], es=keys["ES256"], ed=keys["EdDSA"]))
    return TokenVerifier(config(jwks_file=path))


def config(**settings):
    return JwtConfig.parse({"issuer": ISSUER, "audience": AUDIENCE, **settings})


IDS = {"RS256": "rs", "ES256": "es", "EdDSA": "ed"}


@pytest.mark.parametrize("algorithm", IDS)
def test_every_listed_algorithm_holds(verifier, keys, algorithm):
    token = signed(keys[algorithm], algorithm, IDS[algorithm])
    caller = verifier.verify(token)
    assert (caller.name, caller.may_admin, caller.models) == ("jwt:ada", False, None)
    assert verifier.verify(token) is caller  # the verdict is remembered


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": 1}, "expired"),
        ({"exp": None}, "lacks"),
        ({"nbf": 4_000_000_000}, "not valid yet"),
        ({"iat": 4_000_000_000}, "not valid yet"),
        ({"iss": "https://other.example"}, "another issuer"),
        ({"iss": None}, "lacks"),
        ({"aud": "somebody"}, "somebody else"),
        ({"aud": None}, "lacks"),
    ],
)
def test_claims_that_do_not_hold_are_refused(verifier, keys, changes, reason):
    with pytest.raises(UnauthenticatedError, match=reason):
        verifier.verify(signed(keys["RS256"], "RS256", "rs", **changes))


def test_clocks_may_differ_a_little(verifier, keys):
    now = int(time.time())
    verifier.verify(signed(keys["RS256"], "RS256", "rs", exp=now - 10, nbf=now + 10))


def part(document) -> str:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", ""])
def test_unsigned_tokens_are_refused(verifier, name):
    for signature in ("", part(b"x")):
        token = f"{part({'alg': name, 'kid': 'rs'})}.{part(claims())}.{signature}"
        with pytest.raises(UnauthenticatedError):
            verifier.verify(token)


@pytest.mark.parametrize("form", ["pem", "der"])
def test_a_public_key_is_never_taken_for_a_shared_secret(keys, tmp_path, form):
    """HS256 signed with the RSA public key, against a server that believes both kinds."""
    public = keys["RS256"].public_key()
    encoding = serialization.Encoding.PEM if form == "pem" else serialization.Encoding.DER
    raw = public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = f"{part({'alg': 'HS256', 'kid': 'rs', 'typ': 'JWT'})}.{part(claims())}"
    token = f"{text}.{part(hmac.digest(raw, text.encode(), hashlib.sha256))}"
    (tmp_path / "jwks.json").write_bytes(key_set(rs=keys["RS256"]))
    (tmp_path / "secret").write_bytes(SECRET)
    only_public = TokenVerifier(config(jwks_file=tmp_path / "jwks.json"))
    with pytest.raises(UnauthenticatedError, match="not allowed"):
        only_public.verify(token)
    both = TokenVerifier(
        config(
            jwks_file=tmp_path / "jwks.json",
            secret_file=tmp_path / "secret",
            algorithms=["RS256", "HS256"],
        )
    )
    with pytest.raises(UnauthenticatedError, match="signature is wrong"):
        both.verify(token)
    assert both.verify(signed(SECRET, "HS256")).name == "jwt:ada"
    assert both.verify(signed(keys["RS256"], "RS256", "rs")).name == "jwt:ada"


def test_a_secret_in_a_public_key_set_is_no_key(tmp_path):
    oct_key = {"kty": "oct", "kid": "rs", "k": part(SECRET), "alg": "HS256"}
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [oct_key]}))
    with pytest.raises(ConfigError, match="no public key"):
        TokenVerifier(config(jwks_file=tmp_path / "jwks.json"))


def test_another_key_of_the_same_id_is_refused(verifier):
    with pytest.raises(UnauthenticatedError, match="signature is wrong"):
        verifier.verify(signed(rsa.generate_private_key(65537, 2048), "RS256", "rs"))


def test_an_id_of_another_kind_of_key_is_refused(verifier, keys):
    with pytest.raises(UnauthenticatedError, match="not known"):
        verifier.verify(signed(keys["RS256"], "RS256", "es"))


@pytest.mark.parametrize("key_id", ["../../etc/passwd", "", "x" * 5000, "' OR 1=1", 7])
def test_strange_key_ids_are_refused(verifier, keys, key_id):
    header = {"alg": "RS256", "kid": key_id}
    text = f"{part(header)}.{part(claims())}"
    with pytest.raises(UnauthenticatedError):
        verifier.verify(f"{text}.{part(b'signature')}")


def test_keys_that_a_token_brings_along_are_ignored(verifier):
    own = rsa.generate_private_key(65537, 2048)
    brought = json.loads(key_set(mine=own))["keys"][0]
    token = jwt.encode(
        claims(), own, "RS256", {"kid": "rs", "jwk": brought, "jku": "http://127.0.0.1/evil"}
    )
    with pytest.raises(UnauthenticatedError):
        verifier.verify(token)


@pytest.mark.parametrize(
    "token", ["", "a.b", "a.b.c", "....", "é.é.é", "x" * 20_000, "\x00.\x00.\x00"]
)
def test_what_is_no_token_is_refused(verifier, token):
    with pytest.raises(UnauthenticatedError):
        verifier.verify(token)


def test_an_error_repeats_nothing_of_the_token(verifier, keys):
    token = signed(rsa.generate_private_key(65537, 2048), "RS256", "rs", sub="hidden-subject")
    with pytest.raises(UnauthenticatedError) as caught:
        verifier.verify(token)
    assert not any(piece in str(caught.value) for piece in token.split("."))
    assert "hidden-subject" not in str(caught.value)


def test_scopes_give_rights(verifier, keys):
    def caller(**changes):
        return verifier.verify(signed(keys["ES256"], "ES256", "es", **changes))

    assert caller(scope="fairlead:admin").may_admin
    assert caller(scope="fairlead:infer:digits fairlead:infer:wines").models == {"digits", "wines"}
    assert caller(scope=["fairlead:infer:digits"]).models == {"digits"}
    for scope in ("openid", "", None, "fairlead", "xfairlead:infer", "FAIRLEAD:ADMIN"):
        with pytest.raises(ForbiddenError, match="scope") as refused:
            caller(scope=scope, sub="ada")
        assert refused.value.caller == "jwt:ada"


def test_a_shared_secret_must_be_configured_and_long(tmp_path):
    with pytest.raises(ConfigError, match="secret_file"):
        config(algorithms=["HS256"])
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes"):
        TokenVerifier(config(algorithms=["HS256"], secret_file=tmp_path / "secret"))


def test_keys_are_not_fetched_over_an_open_wire():
    with pytest.raises(ConfigError, match="https"):
        TokenVerifier(config(jwks_url="http://issuer.example/jwks"))


class Provider:
    """An identity provider on loopback."""

    def __init__(self):
        self.document, self.n_asked, self.is_down = b"{}", 0, False
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                provider.n_asked += 1
                self.send_response(503 if provider.is_down else 200)
                self.end_headers()
                self.wfile.write(provider.document)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/jwks.json"


@contextmanager
def provider_of(**keys):
    provider = Provider()
    provider.document = key_set(**keys)
    threading.Thread(target=provider.server.serve_forever, daemon=True).start()
    try:
        yield provider
    finally:
        provider.server.shutdown()
        provider.server.server_close()


def guard_of(verifier):
    return Guard(
        GuardParts(SecurityConfig(), "127.0.0.1", "digits", admin_token="t", tokens=verifier)
    )


def test_a_key_that_is_new_at_the_provider_is_fetched_while_the_request_waits(keys):
    with provider_of(old=keys["RS256"]) as provider:
        verifier = TokenVerifier(config(jwks_url=provider.url))
        verifier.verify(signed(keys["RS256"], "RS256", "old"))
        assert provider.n_asked == 1
        provider.document = key_set(new=keys["ES256"])
        token = signed(keys["ES256"], "ES256", "new")
        request = GuardedRequest("POST", "/predict", authorization=f"Bearer {token}")
        assert asyncio.run(guard_of(verifier).admit_soon(request)).name == "jwt:ada"
        # The old key is gone with the set, and what was believed over it as well.
        with pytest.raises(UnauthenticatedError):
            verifier.verify(signed(keys["RS256"], "RS256", "old"))


def test_unknown_ids_do_not_hammer_the_provider(keys):
    with provider_of(old=keys["RS256"]) as provider:
        verifier = TokenVerifier(config(jwks_url=provider.url))
        for number in range(20):
            try:
                verifier.verify(signed(keys["RS256"], "RS256", f"made-up-{number}"))
            except KeysPendingError as exc:
                exc.fetch.result(10)
            except UnauthenticatedError:
                continue
        assert provider.n_asked == 2


def test_a_provider_that_is_down_takes_nothing_away(keys):
    with provider_of(old=keys["RS256"]) as provider:
        verifier = TokenVerifier(config(jwks_url=provider.url))
        provider.is_down = True
        with pytest.raises(KeysPendingError) as caught:
            verifier.verify(signed(keys["ES256"], "ES256", "new"))
        caught.value.fetch.result(10)
        assert verifier.verify(signed(keys["RS256"], "RS256", "old")).name == "jwt:ada"


def test_a_provider_that_is_down_at_the_start_is_asked_again(keys):
    with provider_of(k=keys["RS256"]) as provider:
        provider.is_down = True
        verifier = TokenVerifier(config(jwks_url=provider.url))
        provider.is_down = False
        with pytest.raises(KeysPendingError) as caught:
            verifier.verify(signed(keys["RS256"], "RS256"))
        caught.value.fetch.result(10)
        assert verifier.verify(signed(keys["RS256"], "RS256")).name == "jwt:ada"


def test_a_file_of_keys_is_read_again(keys, tmp_path, monkeypatch):
    monkeypatch.setattr("fairlead.serve.inference.security.jwks._FILE_LOOK_S", 0.0)
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set(k=keys["RS256"]))
    verifier = TokenVerifier(config(jwks_file=path))
    verifier.verify(signed(keys["RS256"], "RS256"))
    path.write_text("half a fi")
    verifier.verify(signed(keys["RS256"], "RS256"))
    path.write_bytes(key_set(k=keys["ES256"]))
    with pytest.raises(UnauthenticatedError):
        verifier.verify(signed(keys["RS256"], "RS256"))
    assert verifier.verify(signed(keys["ES256"], "ES256")).name == "jwt:ada"
