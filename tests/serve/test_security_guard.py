"""Who is admitted: keys, certificates, rights, limits, what is open, and what is written down."""

from __future__ import annotations

import json
import os
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.errors import (
    ConfigError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    RateLimitedError,
    UnauthenticatedError,
    WorkspaceError,
)
from fairlead.serve.inference.security import SecurityConfig, read_security
from fairlead.serve.inference.security.audit import AuditLog
from fairlead.serve.inference.security.callers import ANYONE, GuardedRequest
from fairlead.serve.inference.security.guard import Guard, GuardParts, is_loopback
from fairlead.serve.inference.security.keys import KeyFile, KeyRing
from fairlead.serve.inference.security.rate_limits import (
    LocalBuckets,
    SharedBuckets,
    new_shared_file,
)
from tests import processes

TOKEN = "service-token"
INFER = GuardedRequest("POST", "/v2/models/digits/infer", peer="192.0.2.7", model="digits")
ADMIN = GuardedRequest("PUT", "/fairlead/traffic", peer="192.0.2.7")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr("fairlead.serve.inference.security.keys._LOOK_EVERY_S", 0.0)
    return KeyFile(tmp_path / "security" / "keys.json")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(file, clock, tmp_path):
    def guard(host="0.0.0.0", config=None, **parts):
        return Guard(
            GuardParts(
                SecurityConfig.parse(config or {}),
                host,
                "digits",
                admin_token=TOKEN,
                keys=KeyRing(file),
                buckets=LocalBuckets(clock),
                audit=AuditLog(tmp_path / "audit", "digits"),
                **parts,
            )
        )

    return guard


def bearer(text, request=INFER):
    return request._replace(authorization=f"Bearer {text}")


def lines(tmp_path, stream):
    path = tmp_path / "audit" / f"digits.{stream}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_server_without_keys_is_open_but_for_administration(make):
    guard = make()
    assert guard.is_open
    assert guard.admit(INFER) is ANYONE
    assert guard.admit(bearer("something of a proxy")) is ANYONE
    with pytest.raises(UnauthenticatedError):
        guard.admit(ADMIN)


def test_the_first_key_closes_a_running_server_and_the_last_does_not_open_it(make, file):
    guard = make()
    _, text = file.add("ada")
    assert not guard.is_open
    with pytest.raises(UnauthenticatedError):
        guard.admit(INFER)
    caller = guard.admit(bearer(text))
    assert caller.name.startswith("ada#")
    assert guard.admit(INFER._replace(api_key=text)) == caller
    file.revoke("ada")
    for request in (INFER, bearer(text), INFER._replace(api_key=text)):
        with pytest.raises(UnauthenticatedError):
            guard.admit(request)
    file.path.unlink()
    with pytest.raises(UnauthenticatedError):
        guard.admit(INFER)


def test_a_damaged_key_file_leaves_the_keys_in_force(make, file):
    _, text = file.add("ada")
    guard = make()
    file.path.write_text("{")
    assert guard.admit(bearer(text)).name.startswith("ada#")
    with pytest.raises(WorkspaceError):
        KeyRing(file)


def test_keys_are_kept_as_hashes_for_the_owner_alone(file):
    key, text = file.add("ada")
    assert text.startswith("flk_")
    assert text not in file.path.read_text()
    assert text.rpartition("_")[2] not in file.path.read_text()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert key.digest not in repr(key)
    with pytest.raises(ConflictError):
        file.add("ada")
    with pytest.raises(NotFoundError):
        file.revoke("bob")


def test_keys_made_at_once_are_all_kept(file):
    threads = [threading.Thread(target=file.add, args=(f"k{i}",)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in file.read()} == {f"k{i}" for i in range(12)}


def test_a_key_ends_when_its_time_is_up(make, file):
    _, text = file.add("ada", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(UnauthenticatedError, match="expired"):
        make().admit(bearer(text))


def test_a_key_asks_its_models_only(make, file):
    _, text = file.add("ada", models=("digits",))
    guard = make()
    assert guard.admit(bearer(text)).models == {"digits"}
    assert guard.admit(bearer(text, INFER._replace(model=None))).models == {"digits"}
    for model in ("wines", "DIGITS", "digits ", ""):
        asked = bearer(text, INFER._replace(model=model or "x"))
        with pytest.raises(ForbiddenError, match="may not ask"):
            guard.admit(asked)


@pytest.mark.parametrize(
    "path",
    [
        "/fairlead/traffic",
        "/fairlead/outcomes",
        "/metrics",
        "/v2/repository/models/digits/unload",
        "/inference.GRPCInferenceService/RepositoryModelLoad",
    ],
)
def test_administration_needs_a_key_that_was_made_for_it(make, file, path):
    _, plain = file.add("ada")
    _, admin = file.add("root", is_admin=True)
    guard = make()
    request = GuardedRequest("POST", path, peer="192.0.2.7")
    with pytest.raises(UnauthenticatedError):
        guard.admit(request)
    with pytest.raises(ForbiddenError):
        guard.admit(bearer(plain, request))
    assert guard.admit(bearer(admin, request)).may_admin
    assert guard.admit(bearer(TOKEN, request)).may_admin


def test_a_flag_makes_any_path_one_of_administration(make, file):
    _, plain = file.add("ada")
    with pytest.raises(ForbiddenError):
        make().admit(bearer(plain, INFER._replace(is_admin=True)))


def test_health_is_always_answered(make, file):
    file.add("ada")
    for path in ("/v2/health/live", "/v2/health/ready", "/grpc.health.v1.Health/Check"):
        assert make().admit(GuardedRequest("GET", path)) is ANYONE


def test_a_made_up_token_administers_from_this_machine_only(make):
    guard = make()
    assert guard.admit(bearer(TOKEN, ADMIN._replace(peer="127.0.0.1"))).may_admin
    assert guard.admit(bearer(TOKEN, ADMIN._replace(peer="::ffff:127.0.0.1"))).may_admin
    with pytest.raises(ForbiddenError, match="another machine"):
        guard.admit(bearer(TOKEN, ADMIN))
    assert make(is_token_chosen=True).admit(bearer(TOKEN, ADMIN)).may_admin


@pytest.mark.parametrize("shown", ["Bearer", "Bearer ", f"bearer{TOKEN}", f"Basic {TOKEN}",
                                   f"Bearer {TOKEN} ", f"Bearer {TOKEN[:-1]}", "Bearer é",
                                   "Bearer flk_00000000_x"])  # fmt: skip
def test_credentials_that_are_nearly_right_are_wrong(make, shown):
    request = ADMIN._replace(authorization=shown, peer="127.0.0.1")
    with pytest.raises(UnauthenticatedError):
        make().admit(request)


def test_on_loopback_models_load_without_a_key_but_not_for_web_pages(make, file):
    load = GuardedRequest("POST", "/v2/repository/models/digits/load", peer="127.0.0.1")
    guard = make("127.0.0.1")
    assert guard.admit(load).name == ANYONE.name
    with pytest.raises(UnauthenticatedError):
        guard.admit(load._replace(origin="https://evil.example"))
    with pytest.raises(UnauthenticatedError):
        make("127.0.0.1", {"repository_access": "admin"}).admit(load)
    file.add("ada")
    with pytest.raises(UnauthenticatedError):
        guard.admit(load)


def test_metrics_are_open_on_loopback_and_where_the_file_says_so(make):
    scrape = GuardedRequest("GET", "/metrics", peer="192.0.2.7")
    assert make("127.0.0.1").admit(scrape) is ANYONE
    assert make(config={"metrics_access": "open"}).admit(scrape) is ANYONE
    for guard in (make(), make("127.0.0.1", {"metrics_access": "admin"})):
        with pytest.raises(UnauthenticatedError):
            guard.admit(scrape)


STATISTICS = ("/v2/models/digits/stats", "/v2/models/digits/versions/1/stats",
              "/inference.GRPCInferenceService/ModelStatistics")  # fmt: skip


@pytest.mark.parametrize("path", STATISTICS)
def test_statistics_of_a_model_are_for_those_who_read_metrics(make, file, path):
    ask = GuardedRequest("GET", path, peer="192.0.2.7", model="digits")
    assert make("127.0.0.1").admit(ask) is ANYONE
    assert make("127.0.0.1").admit(bearer("something of a proxy", ask)) is ANYONE
    assert make(config={"metrics_access": "open"}).admit(ask) is ANYONE
    with pytest.raises(UnauthenticatedError):
        make().admit(ask)
    _, text = file.add("ada", models=("digits",))
    _, other = file.add("bob", models=("wines",))
    _, root = file.add("root", is_admin=True)
    assert make("127.0.0.1").admit(bearer(text, ask)).name.startswith("ada#")
    with pytest.raises(UnauthenticatedError):
        make("127.0.0.1").admit(ask)
    with pytest.raises(ForbiddenError, match="may not ask"):
        make("127.0.0.1").admit(bearer(other, ask))
    with pytest.raises(ForbiddenError, match="may not administer"):
        make().admit(bearer(text, ask))
    assert make().admit(bearer(root, ask)).may_admin


def test_open_metrics_stay_open_when_there_are_keys(make, file):
    file.add("ada")
    scrape = GuardedRequest("GET", "/metrics", peer="192.0.2.7")
    assert make(config={"metrics_access": "open"}).admit(scrape) is ANYONE


TLS = {"certificate": "c.pem", "key": "k.pem", "client_ca": "ca.pem"}


def test_certificates_give_the_rights_that_the_file_lists(make):
    held = INFER._replace(certificate_subject="robot")
    clients = {"robot": {"models": ["digits"]}, "boss": {"is_admin": True}}
    guard = make(config={"tls": TLS, "clients": clients})
    assert guard.admit(held).models == {"digits"}
    with pytest.raises(ForbiddenError):
        guard.admit(ADMIN._replace(certificate_subject="robot"))
    assert guard.admit(ADMIN._replace(certificate_subject="boss")).may_admin
    with pytest.raises(ForbiddenError, match="no right"):
        guard.admit(INFER._replace(certificate_subject="stranger"))
    with pytest.raises(UnauthenticatedError):
        guard.admit(INFER)


def test_a_wrong_key_is_not_saved_by_a_good_certificate(make):
    guard = make(config={"tls": TLS})
    held = INFER._replace(certificate_subject="robot")
    assert guard.admit(held).name == "certificate:robot"
    with pytest.raises(UnauthenticatedError):
        guard.admit(bearer("flk_00000000_wrong", held))


def test_a_subject_means_nothing_without_an_authority(make, file):
    file.add("ada")
    with pytest.raises(UnauthenticatedError):
        make().admit(INFER._replace(certificate_subject="robot"))


def test_a_caller_over_its_rate_hears_when_to_come_back(make, file, clock):
    _, text = file.add("ada", rate_rps=2, burst=3)
    guard = make()
    for _ in range(3):
        guard.admit(bearer(text))
    with pytest.raises(RateLimitedError) as caught:
        guard.admit(bearer(text))
    assert caught.value.retry_after_s == pytest.approx(0.5)
    clock.now += 0.5
    guard.admit(bearer(text))
    with pytest.raises(RateLimitedError):
        guard.admit(bearer(text))


def test_a_key_without_a_rate_has_its_own_burst_of_the_default_rate(make, file):
    _, text = file.add("ada", burst=2)
    guard = make(config={"limits": {"rate_rps": 1, "burst": 9}})
    for _ in range(2):
        guard.admit(bearer(text))
    with pytest.raises(RateLimitedError, match="1 requests a second"):
        guard.admit(bearer(text))


def test_loading_from_elsewhere_needs_credentials_whatever_the_file_says(make, file):
    load = GuardedRequest("POST", "/v2/repository/models/digits/load", peer="192.0.2.7")
    config = {"repository_access": "open"}
    assert make("127.0.0.1", config).admit(load).name == ""
    with pytest.raises(UnauthenticatedError):
        make(config=config).admit(load)
    _, text = file.add("ada")
    assert make(config=config).admit(bearer(text, load)).name.startswith("ada#")
    with pytest.raises(UnauthenticatedError):
        make(config=config).admit(load)


def test_anonymous_callers_are_limited_by_address(make):
    guard = make(config={"limits": {"anonymous_rate_rps": 1}})
    assert not guard.is_open
    guard.admit(INFER)
    with pytest.raises(RateLimitedError):
        guard.admit(INFER)
    guard.admit(INFER._replace(peer="192.0.2.8"))


def test_what_was_refused_and_changed_is_written_down_without_secrets(make, file, tmp_path):
    key, text = file.add("ada")
    _, root = file.add("root", is_admin=True)
    guard = make()
    with pytest.raises(ForbiddenError):
        guard.admit(bearer(text, ADMIN._replace(path="/fairlead/traffic?token=hidden")))
    with pytest.raises(UnauthenticatedError):
        guard.admit(bearer("flk_11111111_hidden"))
    change = bearer(root, ADMIN)
    guard.conclude(change, guard.admit(change), 200)
    guard.conclude(INFER, ANYONE, 200)
    refused, changed = lines(tmp_path, "refused"), lines(tmp_path, "admin")
    assert [line["status"] for line in refused] == [403, 401]
    assert refused[0]["caller"] == f"ada#{key.id}"
    assert refused[0]["path"] == "/fairlead/traffic"
    assert refused[1]["caller"] == ""
    begun, ended = changed
    assert (begun["caller"][:5], begun["method"], begun["phase"]) == ("root#", "PUT", "begun")
    assert (ended["caller"], ended["status"], ended["call"]) == (
        begun["caller"], 200, begun["call"])  # fmt: skip
    assert lines(tmp_path, "requests") == []
    written = "".join(path.read_text() for path in (tmp_path / "audit").glob("*.jsonl"))
    assert not any(secret in written for secret in (text, root, "hidden", TOKEN))


def test_the_log_names_whoever_was_refused_and_is_known(make, tmp_path):
    guard = make(config={"tls": TLS, "clients": {"robot": {"models": ["other"]}}})
    for subject in ("robot", "stranger"):
        with pytest.raises(ForbiddenError):
            guard.admit(INFER._replace(certificate_subject=subject))
    named = [line["caller"] for line in lines(tmp_path, "refused")]
    assert named == ["certificate:robot", "certificate:stranger"]


def test_nothing_is_changed_that_cannot_be_written_down(make, file, tmp_path):
    _, root = file.add("root", is_admin=True)
    guard = make()
    (tmp_path / "audit").rename(tmp_path / "elsewhere")
    (tmp_path / "audit").write_text("in the way")
    with pytest.raises(WorkspaceError, match="nothing is changed"):
        guard.admit(bearer(root, ADMIN))
    # Looking changes nothing, and inference goes on.
    assert guard.admit(bearer(root, ADMIN._replace(method="GET"))).may_admin
    assert guard.admit(bearer(root, INFER)).may_admin


def test_every_request_is_written_down_where_asked_for(make, tmp_path):
    guard = make(config={"audit": {"all_requests": True}})
    assert not guard.is_open
    guard.conclude(INFER, guard.admit(INFER), 200)
    assert [line["model"] for line in lines(tmp_path, "requests")] == ["digits"]


def entry(log, number, stream="admin"):
    log.write(
        stream, caller=f"c{number}", peer="::1", method="PUT", path="/x", status=200, model=None
    )


def test_the_audit_log_rotates_and_is_for_the_owner(tmp_path):
    log = AuditLog(tmp_path, "s", max_bytes=4096, keep=3)
    for number in range(200):
        entry(log, number)
    log.close()
    files = sorted(path.name for path in tmp_path.glob("s.admin.jsonl*"))
    assert files == ["s.admin.jsonl", *(f"s.admin.jsonl.{i}" for i in (1, 2, 3))]
    names = []
    for name in ["s.admin.jsonl.3", "s.admin.jsonl.2", "s.admin.jsonl.1", "s.admin.jsonl"]:
        path = tmp_path / name
        assert path.stat().st_size <= 4096
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        names += [json.loads(line)["caller"] for line in path.read_text().splitlines()]
    assert names == [f"c{i}" for i in range(200 - len(names), 200)]


def write_many(folder, start):
    log = AuditLog(folder, "s", max_bytes=8192, keep=100)
    for number in range(start, start + 300):
        entry(log, number)
    log.close()


def test_several_processes_write_whole_lines_and_lose_none(tmp_path):
    codes = processes.run_all([(write_many, (tmp_path, start)) for start in (0, 1000)])
    assert codes == [0, 0]
    found = []
    for path in tmp_path.glob("s.admin.jsonl*"):
        found += [json.loads(line)["caller"] for line in path.read_text().splitlines()]
    expected = [f"c{start + i}" for start in (0, 1000) for i in range(300)]
    assert sorted(found) == sorted(expected)


@given(
    rate=st.floats(0.5, 50),
    burst=st.integers(1, 20),
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
@settings(max_examples=100, deadline=None)
def test_no_more_than_burst_plus_rate_is_ever_admitted(rate, burst, gaps):
    clocks = Clock(), Clock()
    shared = new_shared_file()
    both = LocalBuckets(clocks[0]), SharedBuckets(shared, clocks[1])
    admitted, elapsed = 0, 0.0
    for gap in gaps:
        elapsed += gap
        for clock in clocks:
            clock.now = 100.0 + elapsed
        one, two = (buckets.take("ada", rate, burst) for buckets in both)
        assert one == pytest.approx(two)
        admitted += one == 0
        assert admitted <= burst + rate * elapsed + 1e-6
    os.close(shared)


def test_callers_beyond_the_slots_only_lose_their_history():
    shared = new_shared_file()
    buckets = SharedBuckets(shared)
    for number in range(20_000):
        assert buckets.take(f"caller{number}", 1.0, 1.0) == 0
    assert buckets.take("caller19999", 1.0, 1.0) > 0
    os.close(shared)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
     ("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("::", False), ("192.0.2.1", False),
     ("localhost.evil.example", False), ("", False), ("fe80::1%eth0", False)],
)  # fmt: skip
def test_loopback_is_known(address, expected):
    assert is_loopback(address) is expected


def test_a_security_file_is_read_with_paths_from_its_folder(tmp_path):
    path = tmp_path / "security.toml"
    path.write_text(
        'metrics_access = "open"\n[tls]\ncertificate = "c.pem"\nkey = "/k.pem"\n'
        '[jwt]\nissuer = "i"\naudience = "a"\njwks_file = "keys.json"\n'
    )
    found = read_security(path)
    assert found.tls.certificate == tmp_path / "c.pem"
    assert str(found.tls.key) == "/k.pem"
    assert found.jwt.jwks_file == tmp_path / "keys.json"


_JWT = "[jwt]\nissuer='i'\naudience='a'\n"


@pytest.mark.parametrize(
    "text",
    ["[", "unknown = 1", "[tls]\ncertificate='c'", _JWT, "[limits]\nburst = 5",
     f"{_JWT}jwks_file='f'\nalgorithms=['none']"],
)  # fmt: skip
def test_a_security_file_that_says_something_else_is_refused(tmp_path, text):
    path = tmp_path / "security.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_security(path)


def test_off_loopback_the_server_says_what_is_open(make, file):
    assert make("127.0.0.1").exposure() == []
    said = " ".join(make().exposure())
    assert "open to everyone" in said
    assert "not encrypted" in said
    assert "administration is refused" in said
    file.add("ada")
    assert "needs credentials" in " ".join(make().exposure())
