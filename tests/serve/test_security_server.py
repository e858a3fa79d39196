"""Real servers that ask for credentials: keys, tokens, certificates, limits, TLS, and the log."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import jwt
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fairlead.api import Context
from fairlead.api.access import add_key, list_keys, revoke_key
from fairlead.backends.endpoint import EndpointClient
from fairlead.core.endpoint import TrafficSplit
from fairlead.core.errors import EndpointError
from fairlead.serve.inference.http.routes import Routes
from fairlead.serve.inference.security.config import TlsConfig
from fairlead.serve.inference.security.tls import open_server_context

from . import inference_models as models
from .certificates import Authority
from .conftest import serving
from .test_security_tokens import AUDIENCE, ISSUER, claims, key_set
from .test_workers import until

X = np.array([[1.0, 2.0, -1.0, 0.5]], np.float32)
ROW = dict(zip(models.FEATURES, X[0].tolist(), strict=True))
BODY = json.dumps({"rows": [ROW]})
INFER = "/v2/models/wines/infer"


class Guarded:
    """A server with two workers, TLS, keys, tokens and certificates, and what opens it."""

    def __init__(self, folder, wines):
        self.folder = folder
        authority = Authority(folder)
        self.ca = authority.path
        server, server_key = authority.issue("server")
        self.robot = authority.issue("robot", is_client=True)
        self.stranger = authority.issue("stranger", is_client=True)
        self.signer = ec.generate_private_key(ec.SECP256R1())
        (folder / "jwks.json").write_bytes(key_set(k=self.signer))
        (folder / "security.toml").write_text(
            f'[tls]\ncertificate = "{server.name}"\nkey = "{server_key.name}"\n'
            'client_ca = "ca.pem"\nclient_certificates = "optional"\n'
            '[clients.robot]\nmodels = ["wines"]\n'
            f'[jwt]\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\n'
            'jwks_file = "jwks.json"\nalgorithms = ["ES256"]\n'
        )
        self.context = Context.open(home=folder / ".fairlead")
        self.keys = {
            "plain": self.key("plain"),
            "other": self.key("other", models=["people"]),
            "root": self.key("root", is_admin=True),
        }
        self.settings = {"workers": 2, "security": str(folder / "security.toml"), "grpc_port": 0}

    def key(self, name, **options):
        return add_key(name, context=self.context, **options).noun

    def token(self, **changes):
        return jwt.encode(claims(**changes), self.signer, "ES256", {"kid": "k"})

    def tls(self, certificate=None):
        context = ssl.create_default_context(cafile=self.ca)
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return context

    def ask(self, path="/predict", *, method="POST", body=BODY, certificate=None, **headers):
        """One request over a connection of its own."""
        host = urlsplit(self.handle.endpoint.url).netloc
        connection = http.client.HTTPSConnection(host, timeout=30, context=self.tls(certificate))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, None if method == "GET" else body, named)
        answer = connection.getresponse()
        raw = answer.read()
        connection.close()
        return answer.status, answer.headers, raw

    def status(self, *words, **headers):
        return self.ask(*words, **headers)[0]


@pytest.fixture(scope="module")
def guarded(wines, tmp_path_factory):
    found = Guarded(tmp_path_factory.mktemp("guarded"), wines)
    with serving(found.folder, wines, settings=found.settings) as handle:
        found.handle = handle
        yield found


def bearer(text):
    return f"Bearer {text}"


def test_every_kind_of_credential_opens_inference(guarded):
    assert guarded.status() == 401
    assert guarded.status(authorization=bearer(guarded.keys["plain"])) == 200
    assert guarded.status(x_api_key=guarded.keys["plain"]) == 200
    assert guarded.status(authorization=bearer(guarded.token())) == 200
    assert guarded.status(certificate=guarded.robot) == 200
    with guarded.handle.client() as client:
        assert client.infer({"x": X}).arm == "baseline"


def test_credentials_that_do_not_hold_are_refused_and_say_what_to_do(guarded):
    status, headers, raw = guarded.ask(x_api_key="flk_00000000_nothing")
    assert status == 401
    assert headers["WWW-Authenticate"].startswith("Bearer")
    assert json.loads(raw)["hint"]
    assert guarded.status(authorization=bearer(guarded.token(exp=1))) == 401
    assert guarded.status(authorization=bearer(guarded.token(aud="x"))) == 401
    assert guarded.status(certificate=guarded.stranger) == 403


def test_models_that_a_caller_may_not_ask_are_refused(guarded):
    other = bearer(guarded.keys["other"])
    assert guarded.status(authorization=other) == 403
    assert guarded.status(INFER, authorization=other) == 403
    assert guarded.status("/v2/models/wines", method="GET", authorization=other) == 403
    assert guarded.status("/v2", method="GET", authorization=other) == 200
    for path in ("/predict/", "/invocations", "/invocations/", "/predict/wines/"):
        assert guarded.status(path, authorization=other) == 403
    scoped = bearer(guarded.token(scope="fairlead:infer:people"))
    assert guarded.status("/v2/models/wines", method="GET", authorization=scoped) == 403


def test_a_slash_at_the_end_changes_no_right():
    routes = Routes({path: {"GET": lambda *_: None} for path in ("/metrics", "/predict", "/v2")})
    for path in ("/metrics", "/predict", "/v2"):
        assert routes.find("GET", f"{path}/".encode()).path == path


@pytest.mark.parametrize("call", ["infer", "stream", "ready", "metadata", "config"])
def test_who_names_no_model_over_grpc_needs_a_right_to_the_default_one(guarded, call):
    service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
    service_pb2_grpc = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")
    credentials = grpc.ssl_channel_credentials(guarded.ca.read_bytes())
    metadata = (("x-api-key", guarded.keys["other"]),)
    with grpc.secure_channel(guarded.handle.endpoint.grpc, credentials) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        if call == "stream":
            request = iter([service_pb2.ModelInferRequest()])
            [answer] = stub.ModelStreamInfer(request, metadata=metadata, timeout=60)
            assert "may not ask the model 'wines'" in answer.error_message
            return
        ask, request = {
            "infer": (stub.ModelInfer, service_pb2.ModelInferRequest()),
            "ready": (stub.ModelReady, service_pb2.ModelReadyRequest()),
            "metadata": (stub.ModelMetadata, service_pb2.ModelMetadataRequest()),
            "config": (stub.ModelConfig, service_pb2.ModelConfigRequest()),
        }[call]
        with pytest.raises(grpc.RpcError) as refused:
            ask(request, metadata=metadata, timeout=60)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/fairlead/service"),
        ("GET", "/fairlead/outcomes"),
        ("PUT", "/fairlead/traffic"),
        ("POST", "/v2/repository/models/wines/unload"),
        ("PUT", "/%66airlead/traffic"),
        ("PUT", "/fairlead/traffic/"),
    ],
)
def test_administration_is_for_administrators(guarded, method, path):
    assert guarded.status(path, method=method) == 401
    plain = bearer(guarded.keys["plain"])
    assert guarded.status(path, method=method, authorization=plain) == 403


def test_an_administrator_by_key_or_by_scope_changes_the_traffic(guarded):
    split = TrafficSplit(weights={"baseline": 1.0}).model_dump_json()
    for shown in (guarded.keys["root"], guarded.token(scope="fairlead:admin")):
        asked = guarded.ask(
            "/fairlead/traffic", method="PUT", body=split, authorization=bearer(shown)
        )
        assert asked[0] == 200

        # What was answered has been written down.
        begun, ended = audit(guarded, "admin")[-2:]
        assert begun["phase"] == "begun"
        assert (begun["call"], begun["caller"]) == (ended["call"], ended["caller"])
        assert ended["status"] == 200
        assert ended["at"]
        assert ended["peer"] == "127.0.0.1"
    callers = {line["caller"].partition("#")[0] for line in audit(guarded, "admin")}
    assert callers >= {"root", "jwt:ada"}


def audit(guarded, stream):
    path = guarded.folder / ".fairlead" / "audit" / f"wines.{stream}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_health_needs_no_credentials(guarded):
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert guarded.status(path, method="GET") == 200


def everywhere(guarded, text, expected):
    """Wait until every worker answers a key so: connections that are held go to them in turn."""
    host = urlsplit(guarded.handle.endpoint.url).netloc
    held = [http.client.HTTPSConnection(host, timeout=30, context=guarded.tls()) for _ in range(6)]
    for connection in held:
        connection.connect()

    def statuses():
        for connection in held:
            connection.request("POST", "/predict", BODY, {"x-api-key": text})
            answer = connection.getresponse()
            answer.read()
            yield answer.status

    until(lambda: set(statuses()) == {expected}, f"every worker answers {expected}")
    for connection in held:
        connection.close()


def test_a_limit_holds_exactly_over_all_workers(guarded):
    """The tokens of one bucket are shared: 20 of 60 pass, whichever worker takes them."""
    text = guarded.key("limited", rate_rps=0.001, burst=20)
    everywhere(guarded, guarded.key("after-limited"), 200)

    def once(_):
        return guarded.ask(x_api_key=text)[:2]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(once, range(60)))
    assert sorted(status for status, _ in found) == [200] * 20 + [429] * 40
    assert all(int(headers["Retry-After"]) >= 1 for status, headers in found if status == 429)


def test_a_revoked_key_is_refused_soon_and_for_good(guarded):
    text = guarded.key("leaving")
    everywhere(guarded, text, 200)
    revoke_key("leaving", context=guarded.context)
    everywhere(guarded, text, 401)
    assert guarded.status(x_api_key=text) == 401


def test_old_protocols_and_weak_ciphers_are_refused(guarded):
    place = urlsplit(guarded.handle.endpoint.url)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(guarded.ca)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    weak = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    weak.load_verify_locations(guarded.ca)
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA:AES256-SHA:AES128-GCM-SHA256")  # no forward secrecy
    for context in (old, weak):
        with (
            socket.create_connection((place.hostname, place.port), timeout=10) as raw,
            pytest.raises(ssl.SSLError),
            context.wrap_socket(raw, server_hostname="localhost"),
        ):
            pass


def test_plain_http_to_a_port_with_tls_gets_nothing(guarded):
    place = urlsplit(guarded.handle.endpoint.url)
    with EndpointClient(f"http://{place.netloc}", "wines", "token", timeout_s=10) as client:
        assert not client.ready()


def test_answers_tell_little_and_are_not_sniffed(guarded):
    for path, shown in (("/v2", bearer(guarded.keys["plain"])), ("/v2/nothing", "")):
        _, headers, _ = guarded.ask(path, method="GET", authorization=shown)
        assert "Server" not in headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "announced", ["content-length: 50000000", "transfer-encoding: chunked", "expect: 100-continue"]
)
def test_a_body_of_somebody_unknown_is_refused_before_it_comes(guarded, announced):
    place = urlsplit(guarded.handle.endpoint.url)
    length = "content-length: 5\r\n" if "expect" in announced else ""
    with (
        socket.create_connection((place.hostname, place.port), timeout=10) as raw,
        guarded.tls().wrap_socket(raw, server_hostname="localhost") as secure,
    ):
        head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\n{length}{announced}\r\n\r\n"
        secure.sendall(head.encode())
        assert secure.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_a_named_caller_cannot_leave_the_log(guarded):
    with guarded.handle.client() as own:
        start = own.outcomes(limit=10_000).next
        guarded.ask(x_api_key=guarded.keys["plain"], fairlead_probe="1", x_request_id="hidden")
        own.infer({"x": X}, is_probe=True, id="probe")
        ids = [item.id for item in own.outcomes(after=start).outcomes]
    assert ids == ["hidden"]


def test_the_page_for_people_loads_nothing(guarded):
    shown = bearer(guarded.keys["plain"])
    _, headers, raw = guarded.ask("/docs", method="GET", authorization=shown)
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert b"<script" not in raw


def test_grpc_asks_for_the_same_credentials(guarded):
    trusted = grpc.ssl_channel_credentials(guarded.ca.read_bytes())
    name = "/inference.GRPCInferenceService/ServerMetadata"
    with grpc.secure_channel(guarded.handle.endpoint.grpc, trusted) as channel:
        call = channel.unary_unary(name)
        assert call(b"", metadata=(("x-api-key", guarded.keys["plain"]),), timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_no_secret_is_ever_written_down(guarded, module_cli):
    """Bad and good requests, then a look at everything that anybody could read."""
    token, wrong = guarded.token(), "flk_12345678_WrongSecretWrongSecret"
    for shown in (token, wrong, token[:-3] + "abc", guarded.keys["other"], guarded.keys["root"]):
        guarded.ask(authorization=bearer(shown))
        guarded.ask(f"/fairlead/nothing?api_key={shown}", method="GET", authorization=bearer(shown))
        guarded.ask(body="{", x_api_key=shown)
    home = guarded.folder / ".fairlead"
    secrets = [*guarded.keys.values(), token, wrong, guarded.handle.admin_token]
    hidden = {part for secret in secrets for part in (secret, secret[-24:])}
    seen = [guarded.handle.log.read_bytes(), json.dumps(list_keys(context=guarded.context).report
            .model_dump(mode="json")).encode()]  # fmt: skip
    seen += [path.read_bytes() for path in (home / "audit").iterdir()]
    seen += [path.read_bytes() for path in (home / "security").iterdir()]
    seen += [_process(pid) for pid in _family(guarded.handle.process.pid)]
    status = module_cli("serve", "status", "--json", env={"FAIRLEAD_HOME": str(home)})
    seen.append((status.stdout + status.stderr).encode())
    assert len(seen) >= 8
    for text in seen:
        for secret in hidden:
            assert secret.encode() not in text


def _family(pid):
    tasks = Path(f"/proc/{pid}/task")
    children = [c for task in tasks.iterdir() for c in (task / "children").read_text().split()]
    return [str(pid), *children]


def _process(pid):
    return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))


@pytest.fixture
def strict(wines, tmp_path):
    """A server that ends connections without a client's certificate."""
    authority = Authority(tmp_path)
    authority.issue("server")
    (tmp_path / "security.toml").write_text(
        '[tls]\ncertificate = "server.pem"\nkey = "server.key"\nclient_ca = "ca.pem"\n'
    )
    settings = {"security": str(tmp_path / "security.toml")}
    with serving(tmp_path, wines, settings=settings) as handle:
        yield handle, authority, tmp_path


def shaken(handle, folder, certificate=None, ca="ca.pem"):
    """Serial number of the server's certificate, after a handshake and an answer."""
    place = urlsplit(handle.endpoint.url)
    context = ssl.create_default_context(cafile=folder / ca)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    with (
        socket.create_connection((place.hostname, place.port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as secure,
    ):
        secure.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        if not secure.recv(65536).startswith(b"HTTP/1.1 200"):
            raise ConnectionError("no answer")
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True)).serial_number


def test_certificates_are_required_and_renewed_without_a_restart(strict):
    handle, authority, folder = strict
    client = authority.issue("client", is_client=True)
    stranger = Authority(folder, "other").issue("client2", is_client=True)
    first = shaken(handle, folder, client)
    with handle.client() as own:  # Fairlead's own commands have a certificate of their own.
        assert own.infer({"x": X}).arm == "baseline"
        own.set_traffic(TrafficSplit(weights={"baseline": 1.0}))
    shown = Path(handle.endpoint.client_certificate)
    assert stat.S_IMODE(shown.stat().st_mode) == 0o600
    for bad in (None, stranger):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            shaken(handle, folder, bad)
    authority.issue("renewed")
    # Half a renewal: a certificate that does not fit the key leaves the old pair in force.
    (folder / "renewed.pem").replace(folder / "server.pem")
    until(lambda: shaken(handle, folder, client) and "stays in force" in handle.log.read_text(),
          "the server looks at the files")  # fmt: skip
    assert shaken(handle, folder, client) == first
    (folder / "renewed.key").replace(folder / "server.key")
    until(lambda: shaken(handle, folder, client) != first, "the renewed certificate is shown")
    with handle.client() as own:
        assert own.ready()
    handle.stop()
    assert not shown.exists()


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_session_does_not_outlive_the_authority_of_its_client(tmp_path, version):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    given = {"certificate": certificate, "key": key, "client_ca": authority.path}
    listener = open_server_context(TlsConfig.parse(given))
    client = ssl.create_default_context(cafile=authority.path)
    client.maximum_version = ssl.TLSVersion[version]
    client.load_cert_chain(*authority.issue("client", is_client=True))
    first = handshake(listener, client)
    Authority(tmp_path, "next").path.replace(authority.path)
    time.sleep(1.1)  # The files are looked at once a second at most.
    with pytest.raises(ssl.SSLError):
        handshake(listener, client, first)


def handshake(listener, client, session=None):
    """Shake hands in memory; return the client's session."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = listener.wrap_bio(up, down, server_side=True)
    asking = client.wrap_bio(down, up, server_hostname="localhost", session=session)
    for _ in range(4):
        for side in (asking, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    server.write(b"done")
    assert asking.read() == b"done"
    assert server.getpeercert()
    return asking.session


def test_a_certificate_that_cannot_be_used_is_said_before_anything_listens(wines, tmp_path):
    Authority(tmp_path).issue("server")
    (tmp_path / "security.toml").write_text('[tls]\ncertificate = "server.pem"\nkey = "ca.pem"\n')
    settings = {"security": str(tmp_path / "security.toml")}
    with (
        pytest.raises(EndpointError, match="certificates cannot be used"),
        serving(tmp_path, wines, settings=settings),
    ):
        pass
