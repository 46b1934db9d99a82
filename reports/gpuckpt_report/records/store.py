# SPDX-License-Identifier: GPL-3.0-or-later
"""A run's folder: manifest.json and records.jsonl, the truth that everything else is made from."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from gpuckpt_report.errors import ReportError
from gpuckpt_report.records.schema import Record, RunManifest, explain
from gpuckpt_report.records.vocabulary import MEASURED_KINDS

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass
class Ingested:
    """What an ingest did: records added, records that were there before, and files refused with their reasons."""

    added: int = 0
    known: int = 0
    rejected: list[str] = field(default_factory=list)


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest_path = path / "manifest.json"
        self.records_path = path / "records.jsonl"
        self.incoming_path = path / "incoming"
        self.rejected_path = path / "rejected"

    def manifest(self) -> RunManifest:
        """Reads the manifest.

        :raises ReportError: if it is missing or invalid, with every error in it
        """
        if not self.manifest_path.is_file():
            raise ReportError(f"{self.manifest_path} is missing: is {self.path} the folder of a run?")
        return parse(RunManifest, self.manifest_path.read_bytes(), str(self.manifest_path))

    def finish(self, moment: datetime) -> None:
        """Notes in the manifest when the run ended.

        :raises ReportError: if the manifest is missing or invalid
        """
        self.manifest()
        document = json.loads(self.manifest_path.read_text(encoding="utf-8"))
        document["finished_at"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        scratch = self.manifest_path.with_suffix(".partial")
        scratch.touch(mode=0o600)
        scratch.write_text(json.dumps(document, indent=4, sort_keys=True) + "\n", encoding="utf-8")
        scratch.replace(self.manifest_path)

    def records(self) -> list[Record]:
        """Reads all records, in the order in which they arrived.

        :raises ReportError: if a line is invalid, naming it
        """
        return list(self.stream())

    def stream(self) -> Iterator[Record]:
        """Reads one record after another, in the order in which they arrived; a fleet's do not fit into memory.

        :raises ReportError: if a line is invalid, naming it
        """
        for _, record in self._placed_records():
            yield record

    def append(self, records: Iterable[Record]) -> Ingested:
        """Appends those records that are not there yet, durably, before returning.

        A record is the same one if run, host, seq and kind agree. One that then differs in content is refused, since a
        measurement cannot change afterwards.
        """
        result = Ingested()
        with self._locked():
            self._set_torn_line_aside()
            stored = {record.key: place for place, record in self._placed_records()}
            arriving = iter(records)
            first = next(arriving, None)
            if first is not None:
                self._add(itertools.chain([first], arriving), stored, result)
        return result

    def ingest(self, extra_files: Iterable[Path] = ()) -> Ingested:
        """Validates what the nodes sent (incoming/<host>/*.json, *.jsonl) and any extra files, and appends it.

        What is invalid is copied to rejected/<host>/ with its reasons next to it, never lost and never counted. One host
        is in memory at a time.
        """
        rejected: list[str] = []
        result = self.append(self._incoming_records(self.manifest(), extra_files, rejected))
        result.rejected = rejected + result.rejected
        return result

    def _incoming_records(
        self, manifest: RunManifest, extra_files: Iterable[Path], rejected: list[str]
    ) -> Iterator[Record]:
        """Yields what fits the run, host by host, each in the order of its run; what does not is set aside and told."""
        sent = sorted(self.incoming_path.glob("*/*.json*"))
        batches: list[tuple[str | None, list[Path]]] = [
            (host, list(paths)) for host, paths in itertools.groupby(sent, key=lambda path: path.parent.name)
        ]
        for host, paths in [*batches, (None, list(extra_files))]:
            accepted: list[Record] = []
            for path in paths:
                good, errors = _fitting_records(path, manifest, host)
                accepted += good
                if errors:
                    self._set_aside(path, host, errors)
                    rejected += errors
            yield from sorted(accepted, key=lambda record: (record.host, record.seq, record.started_at))

    def _placed_records(self) -> Iterator[tuple[int, Record]]:
        """Yields each record with the place of its line in the file."""
        if not self.records_path.is_file():
            return
        place = 0
        with self.records_path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield place, parse(Record, line.removesuffix(b"\n"), f"{self.records_path}:{number}")
                place += len(line)

    def _add(self, records: Iterable[Record], stored: dict[tuple[str, str, int, str], int], result: Ingested) -> None:
        """Appends what is not stored yet, and counts what is.

        :param stored: keys of the records that are there → places of their lines
        """
        with self.records_path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            for record in records:
                line = record.model_dump_json().encode() + b"\n"
                place = stored.setdefault(record.key, end)
                if place == end:
                    end += file.write(line)
                    result.added += 1
                elif self._is_stored(file, place, line, record):
                    result.known += 1
                else:
                    result.rejected.append(
                        f"{_describe(record)} differs from the one already stored; the first one is kept"
                    )
            file.flush()
            os.fsync(file.fileno())

    def _is_stored(self, file: BinaryIO, place: int, line: bytes, record: Record) -> bool:
        file.seek(place)
        stored = file.readline()
        return stored == line or parse(Record, stored, str(self.records_path)) == record

    def _set_torn_line_aside(self) -> None:
        """Keeps aside the half line that a crash or a full disk leaves: the next record gets a line of its own."""
        if not self.records_path.is_file():
            return
        content = self.records_path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self.rejected_path.mkdir(exist_ok=True)
            (self.rejected_path / f"torn-line-at-{whole}.txt").write_bytes(content[whole:])
            os.truncate(self.records_path, whole)

    def _set_aside(self, path: Path, host: str | None, errors: list[str]) -> None:
        folder = self.rejected_path / (host or "imported")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.name)
        (folder / f"{path.name}.reasons.txt").write_text("\n".join(errors) + "\n", encoding="utf-8")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _lines(content: bytes) -> list[bytes]:
    """The lines of a file of JSON lines. What Python takes for the end of a line in a text may stand within a document."""
    return content.removesuffix(b"\n").split(b"\n") if content else []


def parse(model: type[ModelT], text: str | bytes, origin: str) -> ModelT:
    """Validates JSON text against a model.

    :raises ReportError: naming the origin and every error
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ReportError("\n  ".join([f"{origin} is not a valid {model.__name__}:", *explain(error)])) from None


def _numbered_records(path: Path) -> tuple[list[tuple[str, Record]], list[str]]:
    """Returns the valid records of a .json (one) or .jsonl (one a line) file, each with its place, and the errors of the rest."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return [], [f"{path}: cannot be read: {error}"]
    lines = path.suffix == ".jsonl"
    records, errors = [], []
    for number, document in enumerate(_lines(content) if lines else [content], start=1):
        origin = f"{path}:{number}" if lines else str(path)
        try:
            records.append((origin, parse(Record, document, origin)))
        except ReportError as error:
            errors.append(str(error))
    return records, errors


def _fitting_records(path: Path, manifest: RunManifest, host: str | None) -> tuple[list[Record], list[str]]:
    """Returns the records of a file that belong to the run, and what is wrong with the others."""
    numbered, errors = _numbered_records(path)
    records = []
    for origin, record in numbered:
        misfit = _misfit(record, manifest, host)
        if misfit is None:
            records.append(record)
        else:
            errors.append(f"{origin}: {misfit}")
    return records, errors


def _misfit(record: Record, manifest: RunManifest, host: str | None) -> str | None:
    """Why a valid record cannot belong to this run, or None."""
    if record.run_id != manifest.run_id:
        return f"belongs to run {record.run_id}, not to {manifest.run_id}"
    if host is not None and record.host != host:
        return f"names host {record.host}, but came from {host}: pass the inventory name as record.host"
    measured = record.kind in MEASURED_KINDS and record.status == "ok"
    if measured and getattr(record.t, manifest.metric) is None:
        return f"is ok, but has no {manifest.metric}, which is what this run measures (metric in manifest.json)"
    return None


def _describe(record: Record) -> str:
    return f"record {record.seq} ({record.kind}, lane {record.lane}) of host {record.host}"


def find_run(name: str, runs_path: Path) -> RunFolder:
    """The run given by a path, by its id under ``runs_path``, or as ``latest``.

    :raises ReportError: if there is no such run, naming those that exist
    """
    if name == "latest":
        candidates = sorted(runs_path.glob("*/manifest.json"), key=started_at)
        if candidates:
            return RunFolder(candidates[-1].parent)
        raise ReportError(f"no run in {runs_path} yet: `make bench` makes one")
    for path in (runs_path / name, Path(name)):
        if (path / "manifest.json").is_file():
            return RunFolder(path)
    known = ", ".join(sorted(path.parent.name for path in runs_path.glob("*/manifest.json"))) or "none"
    raise ReportError(f"no run {name!r}: neither a folder with a manifest.json nor one of {runs_path} ({known})")


def started_at(manifest_path: Path) -> str:
    """When the run began, as ISO-8601 text; empty for a manifest that cannot be read."""
    try:
        return str(json.loads(manifest_path.read_text(encoding="utf-8"))["started_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
