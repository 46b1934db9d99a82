# SPDX-License-Identifier: GPL-3.0-or-later
"""Phases and errors read from CRIU's logs.

CRIU stamps its lines with the seconds since its own start. Phases are the spans between two landmark lines; nothing
is subtracted to make one. Our plugin and patches add lines `gpuckpt: span name=… pid=… start=… end=…` with the
monotonic clock, which need no alignment.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..parsing import MAX_NUMBER

STAMP = re.compile(r"^\(([0-9]{1,12}\.[0-9]{1,12})\)\s+(.*)$")
SPAN = re.compile(r"gpuckpt: span (?P<fields>name=\S+ .*)$", re.MULTILINE)
ERROR = re.compile(r"\bError \(")
WARNING = re.compile(r"\bWarn  ?\(")
# a warning that many lines before the first error may be its cause: CRIU words some so
NEARBY_LINES = 8
# no line that CRIU writes is longer; what damaged images make it write may be, and patterns take time with its length
LINE_LENGTH = 2000
SCRIPTS = re.compile(r"^Running ([a-z-]+) scripts$")


@dataclass(frozen=True)
class Line:
    """One stamped line: seconds since CRIU's start, and its text."""

    seconds: float
    text: str


@dataclass(frozen=True)
class Landmark:
    """The first (or last) line of a log that matches a pattern."""

    pattern: str
    last: bool = False


@dataclass(frozen=True)
class Phase:
    """What CRIU does between two landmarks."""

    name: str
    start: Landmark
    end: Landmark


def _chain(*steps: tuple[str, Landmark] | Landmark) -> tuple[Phase, ...]:
    """Phases that follow one another: name and start of each, then the end of the last."""
    marks = [step if isinstance(step, Landmark) else step[1] for step in steps]
    names = [step[0] for step in steps if not isinstance(step, Landmark)]
    return tuple(Phase(name, start, end) for name, start, end in zip(names, marks, marks[1:], strict=False))


# In a tree of several processes `memory` spans all of them, and so holds the inspection of the later ones.
DUMP_PHASES = _chain(
    ("criu_setup", Landmark(r"^CRIU run id")),
    ("freeze", Landmark(r"^Dumping processes \(pid")),
    ("inspect", Landmark(r"^net: Lock network")),
    ("memory", Landmark(r"^Dumping pages \(type")),
    ("describe", Landmark(r"^Dumping core \(pid", last=True)),
    ("finish", Landmark(r"^Running post-dump scripts")),
    Landmark(r"^Dumping finished successfully"),
)
RESTORE_PHASES = _chain(
    ("criu_setup", Landmark(r"^CRIU run id")),
    ("read_images", Landmark(r"^Reading image tree")),
    ("fork_and_files", Landmark(r"^Forking task with")),
    ("memory_and_threads", Landmark(r"Restore via sigreturn")),
    ("finish", Landmark(r"^Running post-restore scripts")),
    ("devices", Landmark(r"^Run late stage hook")),
    ("detach", Landmark(r"^Running pre-resume scripts")),
    Landmark(r"^Restore finished successfully"),
)


@dataclass(frozen=True)
class Signature:
    """A log line that names a cause: the reason it stands for, and what to do about it."""

    pattern: str
    reason: str
    message: str


SIGNATURES = (
    Signature(
        r"io_uring",
        "io_uring",
        "a process holds an io_uring descriptor, which CRIU cannot dump; deny io_uring to the server "
        "(the role seccomp_profile, or sysctl kernel.io_uring_disabled=2) and start it again",
    ),
    Signature(
        r"Connected TCP socket",
        "tcp_connection",
        "the server has an open TCP connection; close it (a client that keeps its connection alive), "
        "or set tcp_established for the checkpoint and the restore",
    ),
    Signature(
        r"Can't get 1:16 opt",
        "criu_too_old",
        "this CRIU cannot dump the TCP listeners of this kernel; use CRIU 4.2 or newer (the role criu builds it)",
    ),
    Signature(
        r"No space left on device|Wrote only \d+ of|Cannot allocate memory.*(write|page-xfer)",
        "store_full",
        "the checkpoint store is full; delete old checkpoints or make the store larger "
        "(checkpoint_store_size_mib), or dump a smaller process",
    ),
    Signature(
        r"has bad (size|mode|build-id)",
        "criu_failed",
        "a file that the server holds open changed since the checkpoint; put the file back as it was, "
        "or let the server not hold files open that grow",
    ),
    Signature(
        r"Can't link remap to .*: File exists",
        "criu_failed",
        "CRIU links deleted files of the server as link_remap.N in their folder (the log names it, most often it is /dev/shm), "
        "and a file of that name is in the way; find out who put it there, remove it, then take the checkpoint again",
    ),
    Signature(
        r"Can't fork for \d+: File exists",
        "pid_taken",
        "a process number of the checkpoint is in use; stop the process that has it "
        "(the log names the number), then restore again",
    ),
    Signature(
        r"Unable to create a thread: -17\b",
        "pid_taken",
        "the number of a thread of the checkpoint is in use; the files core-N.img of the images name its numbers: "
        "stop the process that has one of them (ls /proc/N), then restore again",
    ),
    Signature(
        r"Unable to interrupt task: \d+ \(Operation not permitted\)",
        "criu_failed",
        "a debugger or another tracer holds a process of the server (the log names its number, TracerPid in "
        "/proc/N/status the tracer); end that, then take the checkpoint again",
    ),
    Signature(
        r"(Error reading file|Can't read img file|Unable to open .*\.img): "
        r"(Is a directory|Permission denied|Input/output error|Too many levels of symbolic links)",
        "file_unusable",
        "CRIU cannot read a file of the images (the log names the cause); "
        "see what lies in the folder of the images, its rights and its medium, then restore again",
    ),
    Signature(
        r"Error \(criu/(image|protobuf|pagemap)\.c|No (core|mm|pagemap|pstree) image|\.img.*No such file",
        "images_truncated",
        "the images of the checkpoint are incomplete or damaged; take the checkpoint again",
    ),
    Signature(
        r"cuda.*(No such file|not found|could not be started|execvp)",
        "cuda_not_running",
        "the CUDA plugin could not reach the driver; see that cuda-checkpoint lies next to this build of CRIU "
        "and that the driver is 555 or newer",
    ),
    Signature(
        r"cuda.*(out of memory|OUT_OF_MEMORY)",
        "gpu_memory_short",
        "there is not enough free GPU memory for the restore; stop what else uses the GPU, then restore again",
    ),
    Signature(
        r"Can't get rlimit 0",
        "criu_failed",
        "CRIU may not read the limits of the server's processes; run the container's processes as uid 0, "
        "or give the node CAP_SYS_RESOURCE",
    ),
    Signature(
        r"Can't bind inet socket|Address already in use",
        "port_taken",
        "the server's port is in use on this node; stop what listens there, then restore again",
    ),
    Signature(
        r"can't write lsm profile -2\b",
        "criu_failed",
        "the AppArmor profile that the container ran under is not loaded; podman loads it when it starts a container, "
        "not when it restores one: start any container once, then restore again",
    ),
    Signature(
        r"mismatched lsm types",
        "criu_failed",
        "the server ran under a security module (AppArmor) that this node does not have; "
        "take the checkpoint on a node like this one, or restore it on one like that",
    ),
)
KERNEL_CACHE = re.compile(r"(?P<loaded>Loaded kdat cache from )|(?:File|Stale) \S*criu\.kdat")
# CRIU logs these as errors and goes on; a restore that shows them is sound.
HARMLESS = (r"RLIMIT_NOFILE", r"Can't keep kdat cache")
# What a success must not show, although CRIU exits 0: a resume hook that failed, a plugin that gave up.
SILENT_FAILURES = (
    r"cuda_plugin: .*(Failed|failed|Could not|could not|Unable|unable|cannot|timed out)",
    r"(RESUME_DEVICES_LATE|late stage hook).*(fail|error|returned -)",
)
# CRIU's released plugin finds out that a process has nothing on a GPU by a query that fails, and then says so.
QUERY_OF_A_PLAIN_PROCESS = r"Failed to launch cuda-checkpoint to retrieve restore tid"
PLAIN_PROCESS = re.compile(r"cuda_plugin: no need to (?:pause|checkpoint|resume) devices on pid (\d+)", re.IGNORECASE)


def parse(text: str) -> list[Line]:
    """The stamped lines of a log. PIE lines carry no stamp, and take that of the line before them."""
    lines: list[Line] = []
    seconds = 0.0
    for raw in _lines(text):
        match = STAMP.match(raw)
        if match:
            seconds = float(match.group(1))
            lines.append(Line(seconds, match.group(2)))
        elif raw.strip():
            lines.append(Line(seconds, raw))
    return lines


def phases(lines: Sequence[Line], plan: Sequence[Phase]) -> dict[str, tuple[float, float]]:
    """Those phases of the plan that the log shows, as (start, end) in seconds since CRIU's start."""
    found = {}
    for phase in plan:
        start, end = _find(lines, phase.start), _find(lines, phase.end)
        if start is not None and end is not None and end >= start:
            found[phase.name] = (start, end)
    return found


def dump_completed(text: str) -> bool:
    """Whether CRIU has said that its dump is complete; it then ends the processes, unless they are to be left running."""
    return _find(parse(text), DUMP_PHASES[-1].end) is not None


def script_phases(lines: Sequence[Line]) -> dict[str, tuple[float, float]]:
    """Action scripts that ran, as `script_<hook>`: from their line to the next stamped one."""
    found = {}
    for line, following in itertools.pairwise(lines):
        match = SCRIPTS.match(line.text)
        if match and following.seconds - line.seconds >= 0.001:
            found[f"script_{match.group(1).replace('-', '_')}"] = (line.seconds, following.seconds)
    return found


def spans(text: str) -> dict[str, tuple[float, float, int]]:
    """Spans of our plugin and patches: name → (start, end, bytes) on the monotonic clock in seconds.

    Several of one name (one for each process) become one, from the first start to the last end, bytes added up.
    """
    found: dict[str, tuple[float, float, int]] = {}
    for match in SPAN.finditer(text):
        fields = dict(part.split("=", 1) for part in match.group("fields").split() if "=" in part)
        try:
            start, end, size = float(fields["start"]), float(fields["end"]), int(fields.get("bytes") or 0)
        except (KeyError, ValueError):
            continue
        if not 0 <= start <= end < MAX_NUMBER or not 0 <= size < MAX_NUMBER:
            continue
        known = found.get(fields["name"])
        if known:
            start, end, size = min(start, known[0]), max(end, known[1]), size + known[2]
        found[fields["name"]] = (start, end, size)
    return found


def error_lines(text: str) -> list[str]:
    """The lines that report an error, without those known to be harmless."""
    return [line for line in _lines(text) if _is_error(line)]


def cause_lines(text: str) -> list[str]:
    """The lines that report an error, after the last warning that stands shortly before the first of them."""
    lines = _lines(text)
    first = next((number for number, line in enumerate(lines) if _is_error(line)), len(lines))
    warnings = [line for line in lines[max(0, first - NEARBY_LINES) : first] if WARNING.search(line)]
    return [*warnings[-1:], *(line for line in lines[first:] if _is_error(line))]


def silent_failures(text: str, plain_processes: int = 0) -> list[str]:
    """Lines that show a failed hook or plugin, which CRIU's exit status may hide.

    :param plain_processes: how many processes of the tree use no GPU. Of so many the released plugin may say that there
        is nothing to do. If it says so of one more, a CUDA process was passed over.
    """
    passed_over = set(PLAIN_PROCESS.findall(text))
    expected = (QUERY_OF_A_PLAIN_PROCESS,) if len(passed_over) <= plain_processes else ()
    return [line for line in _lines(text) if _matches(line, SILENT_FAILURES) and not _matches(line, expected)]


def classify(text: str) -> Signature | None:
    """The cause that a failed run's log names; the earliest known line of an error, or of the warning before it, decides."""
    for line in cause_lines(text) if error_lines(text) else _lines(text)[-20:]:
        for signature in SIGNATURES:
            if re.search(signature.pattern, line, re.IGNORECASE):
                return signature
    return None


def kernel_cache(text: str) -> str | None:
    """What CRIU did about its notes of the kernel's features (/run/criu.kdat); None if the log does not tell.

    `loaded`, or `probed` where there were none, or another build's.
    """
    found = KERNEL_CACHE.search(text)
    return None if found is None else "loaded" if found["loaded"] else "probed"


def start_of_log(last_write: float, lines: Sequence[Line]) -> float | None:
    """CRIU's start on the monotonic clock in seconds.

    :param last_write: time of the log's last write, on the clock of the calendar.
    """
    if not lines:
        return None
    return last_write - (time.time() - time.monotonic()) - lines[-1].seconds


def _lines(text: str) -> list[str]:
    return [line[:LINE_LENGTH] for line in text.splitlines()]


def _is_error(line: str) -> bool:
    return bool(ERROR.search(line)) and not _matches(line, HARMLESS)


def _matches(line: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, line, re.IGNORECASE) for pattern in patterns)


def _find(lines: Sequence[Line], mark: Landmark) -> float | None:
    expression = re.compile(mark.pattern)
    ordered: Iterable[Line] = reversed(lines) if mark.last else lines
    return next((line.seconds for line in ordered if expression.search(line.text)), None)
