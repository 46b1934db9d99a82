# SPDX-License-Identifier: GPL-3.0-or-later
"""``gpuckpt``, the one program: plays of this project one after another, watched, and all that reads their results.

On a terminal, the last lines hold a live table of lanes; anywhere else there are plain lines only. The complete output
of Ansible is kept, and its path is printed when something failed.
"""

from __future__ import annotations

import codecs
import locale
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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

from gpuckpt_console.progress import COLOURS, Event, HostProgress, LaneProgress, Progress
from gpuckpt_report import PROJECT, __main__
from gpuckpt_report.text.units import human_seconds, seconds

RUNNER_FILES = PROJECT / ".ansible" / "runner"
LOGS_KEPT = 10
POLL_S = 0.25
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
LAST_LINES = 20
# -K, -k, -J, also among other letters, and --ask-…
ASKING = re.compile(r"-[bCDv]*[kKJ]|--ask-")
FILE_OPTIONS = (
    *("-i", "--inventory", "--inventory-file", "-e", "--extra-vars"),
    *("--vault-password-file", "--vault-pass-file", "--private-key", "--key-file"),
    *("--become-password-file", "--become-pass-file", "--connection-password-file", "--conn-pass-file"),
)

Show = Callable[[list[str]], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the plays that the first arguments name, the others go to ansible-playbook; or one command on results."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = _plays()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(known))
        return 0 if arguments else EXIT_USAGE
    plays = list(takewhile(lambda argument: argument in known, arguments))
    if not plays:
        return __main__.main(arguments)
    options = arguments[len(plays) :]
    if options and not options[0].startswith("-"):
        print(f"gpuckpt: there is no play {options[0]!r}; plays: {', '.join(known)}", file=sys.stderr)
        return EXIT_USAGE
    options = _from_here(options)
    return play_in_the_foreground(plays, options) if _asks(options) else run_plays(plays, options)


def play_in_the_foreground(plays: Sequence[str], options: Sequence[str]) -> int:
    """Gives the terminal to Ansible, which asks for a password there; returns its exit status."""
    command = ["ansible-playbook", *options, *(f"{play}.yml" for play in plays)]
    with suppress(KeyboardInterrupt):
        return subprocess.call(command, cwd=PROJECT, env={**os.environ, **_environment()})
    return EXIT_INTERRUPTED


def run_plays(plays: Sequence[str], options: Sequence[str]) -> int:
    """Runs plays in one Ansible, until one fails; shows their progress, and returns the exit status."""
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
        if not progress.play:
            words = [line for line in _last_words(artifacts / "stdout") if line not in progress.told]
            console.print(*words, sep="\n", markup=False)
        console.print(f"{name} failed; Ansible's complete output: {artifacts / 'stdout'}")
        return int(runner.rc)
    if interruption.at_once.is_set() or interruption.asked:
        console.print("the same gpuckpt_run_id with gpuckpt_continue=true goes on with an interrupted run")
        return EXIT_INTERRUPTED
    return 0


class Interruption:
    """What Ctrl-C and SIGTERM do.

    The first one lets a benchmark end in an orderly way. The play finds the stop file and lets the measurement under way
    end. It stops servers, keeps records and makes the report. The second one, or the first where nothing is being measured, ends
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
        """Waits for the play to end."""
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
    commands = "\n".join(f"  {name:<14} {text}" for name, text in __main__.summaries())
    return f"""usage: gpuckpt PLAY … [options of ansible-playbook]
       gpuckpt COMMAND …

plays: {", ".join(plays)}
  example: gpuckpt provision bench -i inventories/example -l gpu-nodes
commands, of which `gpuckpt COMMAND --help` tells more:
{commands}"""


def _environment() -> dict[str, str]:
    """The project's configuration, the ansible-playbook next to this program, and what Ansible cannot do without."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # Set, as images of containers do, it makes Python read a module that is piped to it byte by byte: 30 ms a task.
    environment = {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "PATH": path, "PYTHONUNBUFFERED": ""}
    if not _speaks_utf8():
        environment["LC_ALL"] = "C.UTF-8"
    if not os.access(Path("~").expanduser(), os.W_OK):
        environment["ANSIBLE_HOME"] = str(PROJECT / ".ansible" / "home")
    return environment


def _speaks_utf8() -> bool:
    """Whether the user's locale exists and is UTF-8, without which Ansible does not start; ssh hands on any name."""
    former = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_ALL, "")
        return codecs.lookup(locale.nl_langinfo(locale.CODESET)).name == "utf-8"
    except (locale.Error, LookupError):
        return False
    finally:
        locale.setlocale(locale.LC_ALL, "C")
        locale.setlocale(locale.LC_CTYPE, former)


def _asks(options: Sequence[str]) -> bool:
    """Whether Ansible will ask for a password."""
    return any(ASKING.match(option) or option.endswith("@prompt") for option in options)


def _from_here(options: Sequence[str]) -> list[str]:
    """The options with their files made absolute: users name them from their folder, Ansible runs in the project's."""
    found: list[str] = []
    for former, option in zip(["", *options], options):
        name, equals, value = option.partition("=") if option.startswith("--") else (option[:2], "", option[2:])
        if former in FILE_OPTIONS:
            found.append(_absolute(option, former))
        elif value and name in FILE_OPTIONS:
            found.append(name + equals + _absolute(value, name))
        else:
            found.append(option)
    return found


def _absolute(value: str, option: str) -> str:
    """A path that exists here made absolute; extra variables are a file only behind an @."""
    at = "@" if option in ("-e", "--extra-vars") else ""
    path = Path(value.removeprefix(at))
    return f"{at}{path.absolute()}" if value.startswith(at) and value != at and path.exists() else value


def _last_words(output: Path) -> list[str]:
    """The last lines that Ansible printed: why no play began."""
    try:
        text = output.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = [line for line in COLOURS.sub("", text).splitlines() if line.strip()]
    # All options of Ansible follow upon a wrong one.
    return [line for line in lines if line.startswith("ansible-playbook: error: ")] or lines[-LAST_LINES:]


def _handle(event: Event, progress: Progress, show: Show) -> bool:
    """Shows an event; the answer tells ansible-runner to keep it in its files."""
    show(progress.feed(event))
    return True


@contextmanager
def _view(console: Console, progress: Progress) -> Iterator[Show]:
    """Gives a function that logs lines: above a live table on a terminal, plain elsewhere."""
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
    left = "" if host.left_s is None else f", about {human_seconds(host.left_s)} left"
    table = Table(
        title=f"{name}: {host.done} of {host.total}{left}", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
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
