"""Our own commands against servers that ask for credentials: keys, tokens, TLS and mTLS."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.api import Context
from fairlead.api.access import add_key
from fairlead.api.rollout import roll_out
from fairlead.api.service_place import find_place
from fairlead.api.service_timing import time_service
from fairlead.backends.access import Access
from fairlead.backends.senders import RawSender, prepare_requests, read_model, sender_factory
from fairlead.core.errors import UnauthenticatedError, UsageError
from fairlead.core.settings import Settings

from . import inference_models as models
from .certificates import Authority
from .conftest import serving
from .rollout_models import rows_file
from .test_security_server import Guarded

X = np.array([[1.0, 2.0, -1.0, 0.5], [0.0, 0.0, 0.0, 0.0]], np.float32)


@pytest.fixture(scope="module")
def guarded(wines, tmp_path_factory):
    """Keys, tokens, TLS, and certificates of clients where they show one."""
    found = Guarded(tmp_path_factory.mktemp("guarded"), wines)
    with serving(found.folder, wines, settings=found.settings) as handle:
        found.handle = handle
        for name, text in found.keys.items():
            (found.folder / f"{name}.key.txt").write_text(text + "\n")
        (found.folder / "token.txt").write_text(found.token())
        yield found


@pytest.fixture(scope="module")
def mutual(wines, tmp_path_factory):
    """A server that nobody reaches without a certificate."""
    folder = tmp_path_factory.mktemp("mutual")
    authority = Authority(folder)
    server, key = authority.issue("server")
    robot = authority.issue("robot", is_client=True)
    (folder / "security.toml").write_text(
        f'[tls]\ncertificate = "{server.name}"\nkey = "{key.name}"\n'
        'client_ca = "ca.pem"\nclient_certificates = "required"\n[clients.robot]\nis_admin = true\n'
    )
    settings = {"security": str(folder / "security.toml")}
    with serving(folder, wines, settings=settings) as handle:
        yield handle, authority.path, robot


def sent(url, access, n=4):
    """Statuses of rows sent by both of our load senders."""
    described = read_model(url, "wines", access=access)
    assert described.signature.inputs[0].name == "x"
    signature, feeds = described.signature, {"x": X}
    bodies = prepare_requests(url, "wines", feeds, signature, is_binary=True, access=access)
    raw = RawSender(url, bodies, timeout_s=30, access=access)
    plain = sender_factory(url, "wines", feeds, signature, access=access)()
    try:
        return [raw.send(i % 2, "").status for i in range(n)] + [
            plain.send(i % 2, str(i)).status for i in range(n)
        ]
    finally:
        raw.close()
        plain.close()


def shown(**settings):
    return Access.of_settings(Settings.load(environ={}, **settings))


@pytest.mark.parametrize("what", ["api_key_file", "token_file", "cert_file"])
def test_senders_show_what_the_settings_say(guarded, what):
    if what == "cert_file":
        cert, key = guarded.robot
        given = {"cert_file": cert, "cert_key_file": key}
    else:
        name = "plain.key.txt" if what == "api_key_file" else "token.txt"
        given = {what: guarded.folder / name}
    url = guarded.handle.endpoint.url
    assert sent(url, shown(ca_file=guarded.ca, **given)) == [200] * 8
    with pytest.raises(UnauthenticatedError):
        read_model(url, "wines", access=shown(ca_file=guarded.ca))


def test_senders_pass_mutual_tls(mutual):
    handle, ca, (cert, key) = mutual
    assert sent(handle.endpoint.url, shown(ca_file=ca, cert_file=cert, cert_key_file=key))
    assert sent(handle.endpoint.url, Access.of_endpoint(handle.endpoint, handle.admin_token))


def test_the_environment_says_it_too(guarded):
    settings = Settings.load(
        environ={
            "FAIRLEAD_API_KEY": guarded.keys["plain"],
            "FAIRLEAD_CA_FILE": str(guarded.ca),
        }
    )
    assert guarded.keys["plain"] not in repr(Access.of_settings(settings))
    assert sent(guarded.handle.endpoint.url, Access.of_settings(settings)) == [200] * 8


def test_a_file_without_a_secret_is_refused(tmp_path):
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="holds no API key"):
        shown(api_key_file=tmp_path / "empty")
    with pytest.raises(UsageError, match="cannot be read"):
        shown(token_file=tmp_path / "missing")


def quick(*words):
    return (*words, "--no-search", "--rate", 20, "--step-seconds", 0.5, "--json")


def test_a_load_test_presses_secured_servers(cli, guarded, mutual, tmp_path):
    rows = rows_file(tmp_path / "rows.parquet")
    words = quick("serve", "scale", "test", guarded.handle.endpoint.url, "--data", rows)
    words += ("--labels", "kind", "--model", "wines", "--ca", guarded.ca)
    opened = cli(*words, "--api-key-file", guarded.folder / "plain.key.txt")
    assert opened.returncode in {0, 1}, opened.stderr
    assert opened.json["details"]["load_test"]["steps"][0]["error_ratio"] == 0
    closed = cli(*words, check=2)
    assert "401" in closed.stderr
    handle, ca, (cert, key) = mutual
    words = quick("serve", "scale", "test", handle.endpoint.url, "--data", rows)
    words += ("--labels", "kind", "--model", "wines", "--ca", ca, "--cert", cert, "--key", key)
    done = cli(*words)
    assert done.returncode in {0, 1}, done.stderr
    assert done.json["details"]["load_test"]["steps"][0]["error_ratio"] == 0


def test_models_are_managed_over_a_url_by_a_key_that_may(cli, guarded):
    url, ca = guarded.handle.endpoint.url, guarded.ca
    root = guarded.folder / "root.key.txt"
    listed = cli("serve", "models", "list", url, "--ca", ca, "--api-key-file", root, "--json")
    assert [m["name"] for m in listed.json["details"]["models"]] == ["wines"]
    assert listed.json["details"]["models"][0]["is_default"] is True
    loaded = cli("serve", "models", "load", url, "--ca", ca, "--api-key-file", root, "--json")
    assert loaded.returncode == 0, loaded.stderr
    plain = guarded.folder / "plain.key.txt"
    refused = cli("serve", "models", "unload", url, "--ca", ca, "--api-key-file", plain)
    assert refused.returncode == 2
    assert "may not administer" in refused.stderr
    assert guarded.keys["plain"] not in refused.stderr


def test_a_rollout_goes_through_where_the_workspace_has_keys(tmp_path):
    context = Context.open(home=tmp_path / ".fairlead")
    add_key("somebody", context=context)
    one = models.classifier_bundle(tmp_path / "one")
    two = models.classifier_bundle(tmp_path / "two", shift=1e-6)
    rows = str(rows_file(tmp_path / "rows.parquet"))
    quickly = {"max_requests": 200, "max_seconds": 60.0}
    outcome = roll_out(one.path, two.path, rows, labels="kind", settings=quickly, context=context)
    assert outcome.noun.requests > 0, outcome.report.summary


def test_a_url_that_only_names_the_model_alike_never_sees_the_token(guarded, tmp_path):
    """The token of a recorded server goes to its own address, whatever URL a user gives."""
    url = guarded.handle.endpoint.url.replace("127.0.0.1", "localhost")
    context = Context.open(
        home=guarded.folder / ".fairlead",
        settings={"api_key_file": guarded.folder / "plain.key.txt", "ca_file": guarded.ca},
    )
    place = find_place(f"{url}/v2/models/wines", context)
    assert guarded.handle.admin_token not in str(place.access.headers())
    assert guarded.handle.admin_token in str(place.inside.headers())
    assert time_service(place, {"x": X})
    for wrong in ("http://[::1", "http://h:x", "ftp://h"):
        with pytest.raises(UsageError, match=r"no valid host or port|no URL of a server"):
            find_place(wrong, context)
