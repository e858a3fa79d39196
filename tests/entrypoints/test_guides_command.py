"""`fairlead guides`: listed, shown, installed; nobody's changes are lost."""

from __future__ import annotations

import json

import pytest

from fairlead.api.guides import FOLDER, install_guides, list_guides
from fairlead.core.errors import ConflictError, NotFoundError

IDS = [guide.id for guide in list_guides()]


def test_the_list_begins_with_the_router_and_holds_every_folder():
    assert IDS[0] == "using-ml-production"
    assert set(IDS) == {page.parent.name for page in FOLDER.glob("*/SKILL.md")}


def test_every_description_fits_the_format():
    for guide in list_guides():
        assert len(guide.id) <= 64
        assert 40 <= len(guide.description) <= 1024
        assert guide.files[0] == "SKILL.md" or "SKILL.md" in guide.files


def test_list_shows_each_guide_on_a_line_of_its_own(here):
    lines = here("guides", "list", check=0).stdout.splitlines()

    assert [line.split()[0] for line in lines] == IDS


def test_in_a_terminal_what_a_guide_is_for_stands_in_a_column(here, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    lines = here("guides", "list", check=0).stdout.splitlines()

    assert [line.split()[0] for line in lines if not line.startswith(" ")] == IDS
    assert all(len(line) <= 80 for line in lines)


def test_list_as_json_carries_what_an_agent_routes_on(here):
    document = here("guides", "list", "--json", check=0).json

    assert [guide["id"] for guide in document["guides"]] == IDS
    assert all(guide["description"] for guide in document["guides"])


def test_show_prints_the_page_byte_for_byte(here):
    shown = here("guides", "show", IDS[0], check=0).stdout

    assert shown == (FOLDER / IDS[0] / "SKILL.md").read_text()


def test_show_as_json_holds_the_text(here):
    document = here("guides", "show", IDS[0], "--json", check=0).json

    assert document["id"] == IDS[0]
    assert document["text"].startswith("---\nname: ")


@pytest.mark.parametrize(
    "words", [("show", "no-such-guide"), ("install", "skills", "--only", "no-such-guide")]
)
def test_an_unknown_guide_is_refused_with_the_known_ones(here, tmp_path, words):
    done = here("guides", *words, check=2)

    assert "error: there is no guide `no-such-guide`" in done.stderr
    assert "hint: the guides are using-ml-production" in done.stderr
    assert not (tmp_path / "skills").exists()


def test_install_copies_every_guide(here, tmp_path):
    done = here("guides", "install", "agent/skills", "--json", check=0)

    assert {item["status"] for item in done.json["guides"]} == {"new"}
    for name in IDS:
        page = tmp_path / "agent" / "skills" / name / "SKILL.md"
        assert page.read_text() == (FOLDER / name / "SKILL.md").read_text()


def test_a_second_install_changes_nothing(tmp_path):
    install_guides(tmp_path)
    page = tmp_path / IDS[0] / "SKILL.md"
    before = page.stat().st_mtime_ns, page.stat().st_ino

    done = install_guides(tmp_path)

    assert {item.status for item in done} == {"unchanged"}
    assert (page.stat().st_mtime_ns, page.stat().st_ino) == before


def test_only_the_named_guides_are_installed(tmp_path):
    install_guides(tmp_path, only=[IDS[0]])

    assert [path.name for path in tmp_path.iterdir()] == [IDS[0]]


def test_a_changed_file_is_kept_and_nothing_else_is_written(here, tmp_path):
    page = tmp_path / IDS[0] / "SKILL.md"
    page.parent.mkdir()
    page.write_text("mine")

    done = here("guides", "install", ".", check=2)

    assert f"changed since they were installed: {IDS[0]}/SKILL.md" in done.stderr
    assert "--replace" in done.stderr
    assert page.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [IDS[0]]


def test_replace_overwrites_a_changed_file_and_keeps_foreign_ones(here, tmp_path):
    install_guides(tmp_path)
    (tmp_path / IDS[0] / "SKILL.md").write_text("mine")
    (tmp_path / IDS[0] / "notes" / "own.md").parent.mkdir()
    (tmp_path / IDS[0] / "notes" / "own.md").write_text("keep me")

    done = here("guides", "install", ".", "--replace", "--json", check=0)

    assert done.json["guides"][0]["status"] == "replaced"
    assert (tmp_path / IDS[0] / "SKILL.md").read_text().startswith("---\nname: ")
    assert (tmp_path / IDS[0] / "notes" / "own.md").read_text() == "keep me"


def test_an_untouched_older_version_is_updated_without_asking(tmp_path):
    from fairlead.core.files import digest_file, write_json

    folder = tmp_path / IDS[0]
    folder.mkdir()
    (folder / "SKILL.md").write_text("as version 0.0.9 had it")
    (folder / "old.md").write_text("no longer shipped")
    files = {name: digest_file(folder / name) for name in ("SKILL.md", "old.md")}
    write_json(folder / ".fairlead.json", {"fairlead": "0.0.9", "files": files})

    [done] = install_guides(tmp_path, only=[IDS[0]])

    assert done.status == "updated"
    assert (folder / "SKILL.md").read_text().startswith("---\nname: ")
    assert not (folder / "old.md").exists()


@pytest.mark.parametrize("receipt", ["", "{}", "[1]", '{"files": 3}', "\x00"])
def test_a_broken_receipt_counts_as_none(tmp_path, receipt):
    install_guides(tmp_path, only=[IDS[0]])
    (tmp_path / IDS[0] / ".fairlead.json").write_text(receipt)

    [done] = install_guides(tmp_path, only=[IDS[0]])

    assert done.status == "updated"
    assert json.loads((tmp_path / IDS[0] / ".fairlead.json").read_text())["files"]


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / IDS[0]).write_text("a file")

    with pytest.raises(ConflictError):
        install_guides(tmp_path, replace=True)


def test_a_file_as_target_is_refused(here, tmp_path):
    (tmp_path / "skills").write_text("a file")

    assert "skills is a file" in here("guides", "install", "skills", check=2).stderr


def test_an_unknown_id_is_not_found():
    with pytest.raises(NotFoundError):
        install_guides(FOLDER, only=["nothing"])
