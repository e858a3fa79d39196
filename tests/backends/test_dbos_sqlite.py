"""DBOS on a SQLite that is older than it expects."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text

from fairlead.backends.dbos_sqlite import engine_for_old_sqlite

URL = "sqlite://"


def test_an_old_library_under_a_new_python_gets_the_function():
    before = time.time()
    old = engine_for_old_sqlite(URL, sqlite_version=(3, 40, 1), python_version=(3, 12))
    with old as engine, engine.connect() as connection:
        now = connection.execute(text("SELECT unixepoch('subsec')")).scalar_one()
    assert before <= now <= time.time()


@pytest.mark.parametrize(
    ("url", "sqlite", "python"),
    [
        (URL, (3, 42, 0), (3, 13)),
        (URL, (3, 40, 1), (3, 11)),
        ("postgresql://localhost/x", (3, 40, 1), (3, 13)),
    ],
)
def test_elsewhere_dbos_makes_its_own_engine(url, sqlite, python):
    with engine_for_old_sqlite(url, sqlite_version=sqlite, python_version=python) as engine:
        assert engine is None
