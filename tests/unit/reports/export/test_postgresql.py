# SPDX-License-Identifier: GPL-3.0-or-later
"""The same rows from PostgreSQL as from SQLite, on a server of the test's own behind a socket in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from gpuckpt_report.export import database

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), reverse=True)), None)
pytestmark = pytest.mark.skipif(PROGRAMS is None, reason="PostgreSQL's server is not installed")


def as_postgres(*command):
    """PostgreSQL refuses to run as root."""
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    subprocess.run([*prefix, *map(str, command)], check=True, capture_output=True, text=True, cwd="/")


@pytest.fixture
def postgresql():
    folder = Path(tempfile.mkdtemp(prefix="gpuckpt-postgresql-"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    try:
        as_postgres(PROGRAMS.with_name("initdb"), "--no-sync", "--username=postgres", data)
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        as_postgres(PROGRAMS, "start", "-w", "-D", data, "-l", folder / "log", "-o", options)
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        if (data / "postmaster.pid").exists():
            as_postgres(PROGRAMS, "stop", "-D", data, "-m", "immediate")
        shutil.rmtree(folder)


def test_postgresql_says_what_sqlite_says(fake_run, postgresql):
    run = fake_run()
    sqlite, server = database.open_database("sqlite://"), database.open_database(postgresql)
    try:
        for engine in (sqlite, server, server):  # the second load replaces the first
            database.load(engine, run)
        for table in (database.RECORDS, *database.DETAILS):
            expected, found = (
                [row | {"started_at": None} for row in database.read(engine, table, "fake-run")]
                for engine in (sqlite, server)
            )
            assert found == expected
            assert found
    finally:
        server.dispose()
