"""`fairlead serve keys` and `serve start --security`, as a person uses them."""

from __future__ import annotations

import json


def test_a_key_is_shown_once_and_never_again(cli):
    made = cli("serve", "keys", "add", "alice", "--model", "digits", "--rate-rps", "50",
               "--expires-in-days", "90", "--json", check=0)  # fmt: skip
    text = made.json["details"]["key"]
    assert text.startswith("flk_")
    for words in (("list", "--json"), ("list",), ("revoke", "alice", "--json"), ("list", "--json")):
        done = cli("serve", "keys", *words, check=0)
        assert text not in done.stdout + done.stderr
        assert text[-20:] not in done.stdout + done.stderr
    (key,) = done.json["details"]["keys"]
    assert (key["name"], key["models"], key["rate_rps"]) == ("alice", ["digits"], 50.0)
    assert key["revoked_at"]
    assert "digest" not in json.dumps(key)


def test_what_cannot_be_a_key_is_refused_with_a_hint(cli):
    cli("serve", "keys", "add", "bob", check=0)
    for words, text in (
        (("add", "bob"), "already"),
        (("add", "a/b"), "cannot be"),
        (("add", "carol", "--rate-rps", "-1"), "cannot be"),
        (("add", "carol", "--expires-in-days", "0"), "0 days"),
        (("revoke", "nobody"), "no key"),
    ):
        done = cli("serve", "keys", *words, check=2)
        assert text in done.stderr
        assert "hint:" in done.stderr


def test_a_security_file_that_cannot_be_read_stops_the_start(cli, wines, tmp_path):
    missing = tmp_path / "nothing.toml"
    done = cli("serve", "start", wines.path, "--security", missing, check=2)
    assert "cannot be read" in done.stderr
    (tmp_path / "wrong.toml").write_text("[jwt]\nissuer = 1\n")
    done = cli("serve", "start", wines.path, "--security", tmp_path / "wrong.toml", check=2)
    assert "jwt.issuer" in done.stderr
