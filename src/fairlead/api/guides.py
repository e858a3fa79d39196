"""The guides that ship with the package: listed, read, and installed beside an agent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

import fairlead
from fairlead.core.errors import ConflictError, NotFoundError, UsageError
from fairlead.core.files import digest_tree, new_folder, write_json
from fairlead.core.values import Value
from fairlead.router.answers import SKILLS

__all__ = ["Guide", "InstalledGuide", "install_guides", "list_guides", "read_guide"]

FOLDER: Final = Path(fairlead.__file__).parent / "guides"
_PAGE: Final = "SKILL.md"
_RECEIPT: Final = ".fairlead.json"
_ORDER: Final = ("using-ml-production", *SKILLS)


class Guide(Value):
    """One guide in Agent Skills format: a folder with a page, and perhaps files beside it."""

    id: str
    """Name of the folder, also the id of the skill it is about."""
    description: str
    """When to use it; what an agent routes on."""
    text: str
    """The whole page, front matter included, as Markdown."""
    path: str
    """Folder in the installed package."""
    files: tuple[str, ...]
    """Files of the folder, relative, the page among them."""


class InstalledGuide(Value):
    """What installing did with one guide."""

    id: str
    """Id of the guide."""
    path: str
    """Folder it stands in now."""
    status: Literal["new", "unchanged", "updated", "replaced"]
    """`updated`: an untouched older version was there; `replaced`: changed files were given up."""


def list_guides() -> tuple[Guide, ...]:
    """Return every guide of the package: the router's own first, then the skills by concern."""
    found = {page.parent.name for page in FOLDER.glob(f"*/{_PAGE}")}
    known = [name for name in _ORDER if name in found]
    return tuple(_load(name) for name in (*known, *sorted(found - set(known))))


def read_guide(guide_id: str) -> Guide:
    """Return one guide.

    Raises:
        NotFoundError: There is none of that id; the hint lists the ids.
    """
    ids = [guide.id for guide in list_guides()]
    if guide_id not in ids:
        raise NotFoundError(
            f"there is no guide `{guide_id}`", hint=f"the guides are {', '.join(ids)}"
        )
    return _load(guide_id)


def _load(guide_id: str) -> Guide:
    import yaml

    folder = FOLDER / guide_id
    text = (folder / _PAGE).read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n", 2)[1])
    return Guide(
        id=guide_id,
        description=head["description"],
        text=text,
        path=str(folder),
        files=tuple(digest_tree(folder)),
    )


def install_guides(
    target: Path, *, only: Iterable[str] = (), replace: bool = False
) -> tuple[InstalledGuide, ...]:
    """Copy guides into a folder of skills, each into a folder of its own.

    A file that somebody changed after it was installed is never overwritten unless that is asked
    for, and then nothing at all is written. Files of other people in these folders are kept. A
    receipt in each folder tells files that were changed from files of an older version.

    Args:
        target: The folder of skills; created when it does not exist.
        only: Ids of the guides to install; all of them when empty.
        replace: Whether changed files are overwritten.

    Returns:
        What was done with each guide.

    Raises:
        NotFoundError: An id is unknown.
        ConflictError: Files were changed, or a file stands where a folder should.
        WorkspaceError: The folder cannot be written.
    """
    wanted = [read_guide(name) for name in only] or list(list_guides())
    _check_target(target)
    standing = {guide.id: _standing(guide, target / guide.id) for guide in wanted}
    changed = [path for _, paths in standing.values() for path in paths]
    if changed and not replace:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ConflictError(
            f"changed since they were installed: {', '.join(changed[:3])}{more}",
            hint="keep your copy, or overwrite it with --replace",
        )
    done = []
    for guide in wanted:
        status, paths = standing[guide.id]
        if status != "unchanged":
            _copy(guide, target / guide.id)
        state = "replaced" if paths else status
        done.append(InstalledGuide(id=guide.id, path=str(target / guide.id), status=state))
    return tuple(done)


def _check_target(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file", hint="give the folder that holds the skills")


def _standing(
    guide: Guide, place: Path
) -> tuple[Literal["new", "unchanged", "updated"], list[str]]:
    """Say what stands at the place of a guide, and which of its files were changed by hand."""
    if not place.exists():
        return "new", []
    if not place.is_dir():
        raise ConflictError(
            f"{place} is a file, but the guide needs a folder there", hint="move the file away"
        )
    shipped, found, known = digest_tree(Path(guide.path)), digest_tree(place), _receipt(place)
    changed = [
        str(place / name)
        for name in {**known, **shipped}
        if name in found and found[name] not in (shipped.get(name), known.get(name))
    ]
    is_same = all(found.get(name) == digest for name, digest in shipped.items())
    return ("unchanged" if is_same and known == shipped else "updated"), changed


def _receipt(place: Path) -> Mapping[str, str]:
    try:
        document = json.loads((place / _RECEIPT).read_text(encoding="utf-8"))
        return {str(name): str(digest) for name, digest in document["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _copy(guide: Guide, place: Path) -> None:
    ours = digest_tree(Path(guide.path))
    dropped = {_RECEIPT, *ours, *_receipt(place)}
    with new_folder(place, what="the guide", replace=True) as staging:
        for name in digest_tree(place) if place.is_dir() else ():
            if name not in dropped:
                _copy_file(place / name, staging / name)
        for name in ours:
            _copy_file(Path(guide.path) / name, staging / name)
        write_json(staging / _RECEIPT, {"fairlead": fairlead.__version__, "files": ours})


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
