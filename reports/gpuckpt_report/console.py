# SPDX-License-Identifier: GPL-3.0-or-later
"""``gpuckpt PLAY … [options of ansible-playbook]``: run plays of this project, one after another, and watch them.

On a terminal, the last lines hold a live table of lanes; anywhere else there are plain lines only. The complete output
of Ansible is kept, and its path is printed when something failed.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import ansible_runner
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from gpuckpt_report import PROJECT
from gpuckpt_report.progress import Event, HostProgress, LaneProgress, Progress
from gpuckpt_report.units import seconds

RUNNER_FILES = PROJECT / ".ansible" / "runner"
LOGS_KEPT = 10
POLL_S = 0.25
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

Show = Callable[[list[str]], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the plays that the first arguments name; the others go to ansible-playbook."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = _plays()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(known))
        return 0 if arguments else EXIT_USAGE
    plays = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    wrong = [play for play in plays if play not in known]
    if wrong or not plays:
        print(f"gpuckpt: there is no play {(wrong or arguments)[0]!r}; plays: {', '.join(known)}", file=sys.stderr)
        return EXIT_USAGE
    return run_plays(plays, arguments[len(plays) :])


def run_plays(plays: Sequence[str], options: Sequence[str]) -> int:
    """Run plays in one Ansible, until one fails; show their progress, and return the exit status."""
    name = "-".join(plays)
    *before, last = (f"{play}.yml" for play in plays)
    progress = Progress()
    console = Console(highlight=False, soft_wrap=True)
    RUNNER_FILES.mkdir(mode=0o700, parents=True, exist_ok=True)
    ident = f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    interruption = Interruption(RUNNER_FILES / f"stop-{ident}", progress)
    with _view(console, progress) as show, interruption:
        thread, runner = ansible_runner.run_async(
            private_data_dir=str(RUNNER_FILES),
            project_dir=str(PROJECT),
            playbook=last,
            # ansible-playbook wants its playbooks side by side
            cmdline=shlex.join([*options, *before]) or None,
            ident=ident,
            envvars={**_environment(), "GPUCKPT_STOP_FILE": str(interruption.stop_file)},
            event_handler=lambda event: _handle(event, progress, show),
            cancel_callback=interruption.at_once.is_set,
            rotate_artifacts=LOGS_KEPT,
            suppress_env_files=True,
            quiet=True,
        )
        interruption.watch(thread, show)
    artifacts = Path(runner.config.artifact_dir)
    # ansible-runner notes the whole environment there, and tokens may be in it
    (artifacts / "command").unlink(missing_ok=True)
    if interruption.at_once.is_set():
        console.print(
            "interrupted; records made so far lie on the nodes, where a server may still run until the next run stops it"
        )
    elif runner.rc:
        console.print(f"{name} failed; Ansible's complete output: {artifacts / 'stdout'}")
        return int(runner.rc)
    if interruption.at_once.is_set() or interruption.asked:
        console.print("the same gpuckpt_run_id with gpuckpt_continue=true goes on with an interrupted run")
        return EXIT_INTERRUPTED
    return 0


class Interruption:
    """What Ctrl-C and SIGTERM do.

    The first one lets a benchmark end in an orderly way: the play finds the stop file, lets the measurement under way end,
    stops servers, keeps records and makes the report. The second one, or the first where nothing is being measured, ends
    Ansible at once.
    """

    def __init__(self, stop_file: Path, progress: Progress) -> None:
        self.stop_file = stop_file
        self.at_once = threading.Event()
        self.asked = False
        self._progress = progress
        self._received = 0

    def __enter__(self) -> Interruption:
        # A handler, since a thread that is joined counts as ended once an exception has come out of its join.
        self._former = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
        self.stop_file.unlink(missing_ok=True)

    def watch(self, thread: threading.Thread, show: Show) -> None:
        """Wait for the play to end."""
        answered = 0
        while thread.is_alive():
            thread.join(timeout=POLL_S)
            while answered < self._received:
                answered += 1
                self._answer(show)

    def _receive(self, *_: object) -> None:
        self._received += 1

    def _answer(self, show: Show) -> None:
        if self.asked or not self._progress.hosts:
            self.at_once.set()
            return
        self.asked = True
        self.stop_file.touch(mode=0o600)
        show(
            [
                "interrupted: what is being measured ends, servers are stopped, records are kept; once more to end at once"
            ]
        )


def _plays() -> list[str]:
    return sorted(path.stem for path in PROJECT.glob("*.yml") if (PROJECT / "playbooks" / path.name).is_file())


def _usage(plays: Sequence[str]) -> str:
    example = "gpuckpt provision bench -i inventories/example -l gpu-nodes -e gpuckpt_iterations=10"
    return f"usage: gpuckpt PLAY … [options of ansible-playbook]\n\nplays: {', '.join(plays)}\nexample: {example}"


def _environment() -> dict[str, str]:
    """The project's configuration, and the ansible-playbook that was installed beside this program."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # Set, as images of containers do, it makes Python read a module that is piped to it byte by byte: 30 ms a task.
    return {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "PATH": path, "PYTHONUNBUFFERED": ""}


def _handle(event: Event, progress: Progress, show: Show) -> bool:
    """Show an event; the answer tells ansible-runner to keep it in its files."""
    show(progress.feed(event))
    return True


@contextmanager
def _view(console: Console, progress: Progress) -> Iterator[Show]:
    """Give a function that logs lines: above a live table on a terminal, plain elsewhere."""
    if not console.is_terminal:
        yield _print_plain
        return
    with Live(_Panel(progress), console=console, refresh_per_second=8, transient=True) as live:
        yield lambda lines: _print_above(live, lines)


def _print_plain(lines: list[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _print_above(live: Live, lines: list[str]) -> None:
    for line in lines:
        live.console.print(Text(line, _style(line)))


def _style(line: str) -> str:
    if "FAILED" in line or "LOST" in line:
        return "red"
    return "bold" if line.startswith("PLAY ") else ""


class _Panel:
    """What stands below the log on a terminal: task, elapsed time, and the lanes of each host."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.started = time.monotonic()
        self.spinner = Spinner("dots")

    def __rich__(self) -> Group:
        minutes, rest = divmod(int(time.monotonic() - self.started), 60)
        text = Text(f"{minutes}:{rest:02} {self.progress.task}", overflow="ellipsis", no_wrap=True)
        self.spinner.update(text=text)
        return Group(*(_host_table(name, host) for name, host in self.progress.hosts.items()), self.spinner)


def _host_table(name: str, host: HostProgress) -> Table:
    table = Table(title=f"{name}: {host.done} of {host.total}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("lane", "done", "failed", "last s", "median s"):
        table.add_column(heading, justify="left" if heading == "lane" else "right", no_wrap=True)
    for lane_name, lane in host.lanes.items():
        table.add_row(*_lane_row(lane_name, lane))
    return table


def _lane_row(name: str, lane: LaneProgress) -> list[Any]:
    last = lane.seconds[-1] if lane.seconds else None
    failed = Text(str(lane.failed), "red" if lane.failed else "")
    return [name, f"{lane.done}/{lane.total}", failed, seconds(last), seconds(lane.median)]


if __name__ == "__main__":
    sys.exit(main())
