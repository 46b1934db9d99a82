# SPDX-License-Identifier: GPL-3.0-or-later
"""Records as a Parquet file: a row each, typed columns, and the unit of each column in its metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from gpuckpt_report.errors import ReportError
from gpuckpt_report.records.schema import SCHEMA_VERSION, SIZES, Record, RunManifest
from gpuckpt_report.records.vocabulary import MOMENTS

if TYPE_CHECKING:
    import pyarrow

MISSING = (
    "Parquet needs pyarrow, which is not installed: .venv/bin/pip install --require-hashes -r requirements/parquet.txt"
)


@dataclass(frozen=True)
class Column:
    """A column: its name, its type as Arrow names it, its unit (empty for names and counts), and what it is."""

    name: str
    type: str
    unit: str
    text: str


MOMENT_TEXTS = {
    "T1": "the command returned",
    "T2": "every CUDA process runs",
    "T3": "first answer 200 of /health",
    "T4": "first token of the canary",
    "T5": "last token of the canary",
}
SIZE_TEXTS = {
    "images_total": "images of the checkpoint",
    "gpu": "GPU memory in the checkpoint",
    "read": "images read by the restore",
    "mapped": "images mapped by the restore",
    "archive": "archive of the checkpoint",
}
COLUMNS = (
    Column("run_id", "string", "", "run"),
    Column("host", "string", "", "inventory name of the node"),
    Column("seq", "int64", "", "place in the schedule"),
    Column("lane", "string", "", "lane"),
    Column("kind", "string", "", "cold, restore, checkpoint, probe or floor"),
    Column("iteration", "int64", "", "number of the round"),
    Column("warmup", "bool", "", "whether it does not count"),
    Column("status", "string", "", "ok or failed"),
    Column("reason", "string", "", "why it failed"),
    Column("started_at", "timestamp[us, tz=UTC]", "", "when the command was started"),
    Column("build", "string", "", "build of CRIU that did the work"),
    Column("slimming", "string", "", "what was done to the server before its checkpoint"),
    Column("source", "string", "", "where the images lay"),
    *(Column(f"{moment}_s", "double", "s", f"since T0: {MOMENT_TEXTS[moment]}") for moment in MOMENTS),
    *(Column(f"{size}_bytes", "int64", "B", SIZE_TEXTS[size]) for size in SIZES),
    Column("gpu_mem_before_bytes", "int64", "B", "GPU memory in use before"),
    Column("gpu_mem_after_bytes", "int64", "B", "GPU memory in use once the server has ended"),
    Column("canary_equal", "bool", "", "whether the canary's tokens are those from before the checkpoint"),
    Column("resident_fraction", "double", "1", "share of the images in the page cache before"),
    Column("calibration_s", "double", "s", "fixed loop just before"),
    Column("load_before", "double", "1", "load of the machine before"),
    Column("processors", "int64", "", "processors of the machine"),
    Column("steal_share", "double", "1", "share of the time that other guests took"),
)


def content(manifest: RunManifest, records: Sequence[Record]) -> bytes:
    """The records of a run as a Parquet file; phases are columns of their own, in seconds.

    The file's metadata hold the manifest (`gpuckpt.manifest`) and the version of the records' schema.

    :raises ReportError: without pyarrow
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ReportError(MISSING) from None
    phases = dict.fromkeys(name for record in records for name in record.phases)
    columns = [*COLUMNS, *(Column(f"phase.{name}_s", "double", "s", f"length of phase {name}") for name in phases)]
    schema = pyarrow.schema(
        [_field(pyarrow, column) for column in columns],
        metadata={"gpuckpt.schema_version": str(SCHEMA_VERSION), "gpuckpt.manifest": manifest.model_dump_json()},
    )
    table = pyarrow.Table.from_pylist([row(record) for record in records], schema=schema)
    file = BytesIO()
    pyarrow.parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def row(record: Record) -> dict[str, Any]:
    """A record flat: values of the columns, and the length of each of its phases in seconds."""
    same = ("run_id", "host", "seq", "lane", "kind", "iteration", "warmup", "status", "reason", "started_at")
    conditions = record.conditions
    return (
        {name: getattr(record, name) for name in (*same, "slimming", "source")}
        | {"build": record.build.name if record.build else None}
        | {f"{moment}_s": getattr(record.t, moment) for moment in MOMENTS}
        | {f"{size}_bytes": getattr(record.bytes, size) for size in SIZES}
        | {"gpu_mem_before_bytes": record.gpu_mem_before, "gpu_mem_after_bytes": record.gpu_mem_after}
        | {"canary_equal": record.canary.equal, "resident_fraction": record.page_cache.resident_fraction}
        | {
            name: getattr(conditions, name) if conditions else None
            for name in ("calibration_s", "load_before", "processors", "steal_share")
        }
        | {f"phase.{name}_s": span.end - span.start for name, span in record.phases.items()}
    )


def _field(library: Any, column: Column) -> pyarrow.Field[Any]:
    kinds = {
        "string": library.string(),
        "int64": library.int64(),
        "double": library.float64(),
        "bool": library.bool_(),
        "timestamp[us, tz=UTC]": library.timestamp("us", tz="UTC"),
    }
    return library.field(column.name, kinds[column.type], metadata={"unit": column.unit, "description": column.text})
