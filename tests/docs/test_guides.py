"""Every command in every guide is run, as a reader would run it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "src" / "fairlead" / "guides").glob("*/SKILL.md"))
PAGES = sorted((ROOT / "docs" / "guides").glob("*.md"))
_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands_of(page: Path) -> list[str]:
    return _BLOCK.findall(page.read_text())


@pytest.fixture
def folder(bundles, tmp_path):
    shutil.copytree(bundles, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("page", [*GUIDES, *PAGES], ids=lambda p: p.parent.name + "/" + p.name)
@pytest.mark.timeout(900)
def test_every_command_of_a_guide_works(page, folder):
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FAIRLEAD_HOME": str(folder / ".fairlead"),
    }
    blocks = commands_of(page)
    assert blocks or page in PAGES
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_there_is_a_guide_for_every_skill_and_the_router():
    from fairlead.catalog import CARDS

    assert {page.parent.name for page in GUIDES} == {card.id for card in CARDS} | {
        "using-ml-production"
    }
