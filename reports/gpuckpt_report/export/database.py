# SPDX-License-Identifier: GPL-3.0-or-later
"""The database: loaded from records.jsonl, as often as one likes, and never the truth itself.

A URL names it, of SQLite or PostgreSQL. It is there for queries: statistics and reports are made of the records.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Engine,
    Float,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    insert,
    select,
)
from sqlalchemy.exc import SQLAlchemyError

from gpuckpt_report import DATABASE_URL_VARIABLE
from gpuckpt_report.errors import ReportError
from gpuckpt_report.records.schema import SIZES, Record, RunManifest
from gpuckpt_report.records.store import RunFolder
from gpuckpt_report.records.vocabulary import MOMENTS

METADATA = MetaData()
# So many are in memory while a run is loaded.
RECORDS_AT_ONCE = 500
_KEY = ("run_id", "host", "seq", "kind")


def _key_columns() -> list[Column[Any]]:
    return [
        Column("run_id", String, primary_key=True),
        Column("host", String, primary_key=True),
        Column("seq", Integer, primary_key=True),
        Column("kind", String, primary_key=True),
    ]


def _detail_table(name: str, *columns: Column[Any]) -> Table:
    owner = ForeignKeyConstraint(_KEY, [f"records.{column}" for column in _KEY])
    return Table(name, METADATA, *_key_columns(), *columns, owner)


RUNS = Table(
    "runs",
    METADATA,
    Column("run_id", String, primary_key=True),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("metric", String, nullable=False),
    Column("fake", Boolean, nullable=False),
    Column("manifest", JSON, nullable=False),
)
RECORDS = Table(
    "records",
    METADATA,
    *_key_columns(),
    Column("lane", String, nullable=False),
    Column("iteration", Integer, nullable=False),
    Column("warmup", Boolean, nullable=False),
    Column("status", String, nullable=False),
    Column("reason", String),
    Column("message", String),
    Column("started_at", DateTime(timezone=True), nullable=False),
    *(Column(moment, Float) for moment in MOMENTS),
    *(Column(f"{name}_bytes", BigInteger) for name in SIZES),
    Column("gpu_mem_before", BigInteger),
    Column("gpu_mem_after", BigInteger),
    Column("resident_fraction", Float),
    Column("slimming", String, nullable=False),
    Column("source", String),
    Column("build", String),
    Column("fake", Boolean, nullable=False),
    Column("document", JSON, nullable=False),
)
PHASES = _detail_table(
    "phases", Column("phase", String, primary_key=True), Column("start_s", Float), Column("end_s", Float)
)
IMAGES = _detail_table("images", Column("image_kind", String, primary_key=True), Column("bytes", BigInteger))
REQUESTS = _detail_table(
    "requests",
    Column("number", Integer, primary_key=True),
    Column("ttft_s", Float),
    Column("duration_s", Float),
    Column("tokens", Integer),
)
FLOORS = _detail_table(
    "floors", Column("name", String, primary_key=True), Column("value", Float), Column("unit", String)
)
DETAILS = (PHASES, IMAGES, REQUESTS, FLOORS)


def open_database(url: str) -> Engine:
    """Connects and makes the tables where they are missing.

    :raises ReportError: if the URL or the server behind it does not work
    """
    try:
        engine = create_engine(_with_driver(url))
        METADATA.create_all(engine)
    except (SQLAlchemyError, ModuleNotFoundError) as error:
        cause = str(error).splitlines()[0]
        raise ReportError(f"cannot open the database: {cause}; check {DATABASE_URL_VARIABLE} or --database") from None
    return engine


def _with_driver(url: str) -> str:
    """Plain PostgreSQL URLs mean psycopg 3 here, the driver that is installed, not SQLAlchemy's older default."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if separator and scheme in ("postgres", "postgresql") else url


def load(engine: Engine, run: RunFolder) -> None:
    """Makes the database say what the run's folder says, replacing what it said of this run before."""
    manifest, records = run.manifest(), run.stream()
    with engine.begin() as connection:
        for table in (*DETAILS, RECORDS, RUNS):
            connection.execute(delete(table).where(table.c.run_id == manifest.run_id))
        connection.execute(insert(RUNS), _run_row(manifest))
        while some := list(itertools.islice(records, RECORDS_AT_ONCE)):
            for table in (RECORDS, *DETAILS):
                rows = _rows(table, some)
                if rows:
                    connection.execute(insert(table), rows)


def read(engine: Engine, table: Table, run_id: str) -> list[dict[str, Any]]:
    """All rows of one run, ordered by primary key."""
    query = select(table).where(table.c.run_id == run_id).order_by(*table.primary_key.columns)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def _run_row(manifest: RunManifest) -> dict[str, Any]:
    return {
        "run_id": manifest.run_id,
        "started_at": manifest.started_at,
        "metric": manifest.metric,
        "fake": manifest.fake,
        "manifest": manifest.model_dump(mode="json"),
    }


def _rows(table: Table, records: Iterable[Record]) -> list[dict[str, Any]]:
    make = _ROW_MAKERS[table.name]
    return [dict(zip(_KEY, record.key, strict=True)) | row for record in records for row in make(record)]


def _record_row(record: Record) -> list[dict[str, Any]]:
    same = ("lane", "iteration", "warmup", "status", "reason", "message", "started_at")
    more = ("gpu_mem_before", "gpu_mem_after", "slimming", "source", "fake")
    return [
        {name: getattr(record, name) for name in same + more}
        | {moment: getattr(record.t, moment) for moment in MOMENTS}
        | {f"{name}_bytes": getattr(record.bytes, name) for name in SIZES}
        | {
            "resident_fraction": record.page_cache.resident_fraction,
            "build": record.build.name if record.build else None,
            "document": record.model_dump(mode="json"),
        }
    ]


def _phase_rows(record: Record) -> list[dict[str, Any]]:
    return [{"phase": name, "start_s": span.start, "end_s": span.end} for name, span in record.phases.items()]


def _image_rows(record: Record) -> list[dict[str, Any]]:
    return [{"image_kind": kind, "bytes": size} for kind, size in record.bytes.images.items()]


def _request_rows(record: Record) -> list[dict[str, Any]]:
    return [
        {"number": number, **request.model_dump(include={"ttft_s", "duration_s", "tokens"})}
        for number, request in enumerate(record.requests, start=1)
    ]


def _floor_rows(record: Record) -> list[dict[str, Any]]:
    return [{"name": name, **quantity.model_dump()} for name, quantity in record.floor.items()]


_ROW_MAKERS = {
    "records": _record_row,
    "phases": _phase_rows,
    "images": _image_rows,
    "requests": _request_rows,
    "floors": _floor_rows,
}
