# SPDX-License-Identifier: GPL-3.0-or-later
"""One server as a service: restored from its golden checkpoint, started cold where that cannot be, watched, stopped.

It fails open: whatever keeps the checkpoint from being restored is said, and the server is started from nothing. A checkpoint
that does not fit any more, or is damaged, is made anew when that server is stopped. It is warm then, and idle.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import NoReturn

from ..errors import CkptError
from ..parsing import FormatError, build
from ..safety import locks
from ..system import procfs
from ..system.commands import Commands
from ..system.files import read_json, read_text, remove, write_json
from . import start
from .identity import Identity
from .wanted import Wanted

FOLDER = "/run/gpuckpt/serving"
# of a restore that found the checkpoint itself at fault; anything else may pass, and the checkpoint is tried again
CHECKPOINT_AT_FAULT = frozenset(
    {
        "images_damaged",
        "images_truncated",
        "images_missing",
        "canary_differs",
        "memory_damaged",
        "counter_lost",
        "gpu_bytes_missing",
    }
)
LISTEN_FD = 3
REAP_INTERVAL_S = 10.0
# how long a server that is stopped may go on answering
GRACE_S = 10.0
# how long to wait while others on this node are restored, started or checkpointed
LOCK_PATIENCE_S = 600.0
BACKLOG = 4096
PROXY = "/lib/systemd/systemd-socket-proxyd"
OK, SERVER_ENDED, FAILED = 0, 1, 2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# systemd means them for this process alone. Podman would hand them on, and bind the socket into a container that is then
# checkpointed with it.
SYSTEMDS_VARIABLES = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


Address = tuple[str, int]


@dataclass(frozen=True)
class Serving:
    """How a server came up: `restored` or `cold`, why not restored, and seconds from the call to the canary's answer.

    `identity` is the node's and the server's when it was started: a checkpoint of this server depends on that.
    """

    name: str
    instance: str
    mode: str
    why: list[str]
    renew: bool
    answered_s: float
    since: str
    supervisor: locks.Holder
    identity: Identity


class StopRequested(BaseException):
    """A signal told the supervisor to stop."""


def serve(wanted: Wanted) -> int:
    """Serves until a signal or the server's end. Returns an exit status."""
    systemd = _take_systemds_variables()
    with _signals(), _serving(wanted) as serving:
        _notify(systemd, "READY=1", f"STATUS={_in_words(serving)}")
        return _watch(wanted, serving)


def serve_at(wanted: Wanted, address: Address) -> int:
    """Serves at an address of its own, where nobody answers before the server is up, proved, and unique.

    For programs that start servers by a command and ask them whether they are healthy. Returns an exit status.
    """
    systemd = _take_systemds_variables()
    with _signals(), _bound(address) as listener, _serving(wanted) as serving:
        listener.listen(BACKLOG)
        with _proxy(wanted, listener.fileno()) as proxy:
            _notify(systemd, "READY=1", f"STATUS={_in_words(serving)}")
            return _watch(wanted, serving, proxy)


def serve_on_demand(wanted: Wanted, idle_s: float) -> int:
    """Serves the socket that was handed over until no client is left for so long. Returns an exit status.

    For machines whose first process is not systemd: `systemd-socket-activate` hands over the socket of the first request.
    """
    if _take_systemds_variables().get("LISTEN_FDS") != "1":
        say("no socket was handed over; start this with systemd-socket-activate --listen=ADDRESS.")
        return FAILED
    with _signals(), _serving(wanted) as serving, _proxy(wanted, LISTEN_FD, idle_s) as proxy:
        return _watch(wanted, serving, proxy)


def _watch(wanted: Wanted, serving: Serving, proxy: subprocess.Popen[bytes] | None = None) -> int:
    """Until a signal, or the end of the server or of the proxy. Returns an exit status."""
    _note(wanted, serving)
    server = start.runtime_of(wanted, serving.instance).instance().pid
    try:
        _wait_for_any([process for process in (server, proxy.pid if proxy else None) if process is not None])
    except StopRequested:
        return OK
    if proxy is not None and proxy.poll() is not None:
        return OK
    say(f"the server {wanted.name} has ended by itself.")
    return SERVER_ENDED


def _note(wanted: Wanted, serving: Serving) -> None:
    """Clients are served: now there is time to remember this start. A full disk is no reason to stop."""
    from . import history

    try:
        history.note(wanted, serving)
    except OSError as error:
        say(f"this start of {wanted.name} could not be noted ({error}).")


def say(text: str) -> None:
    """One line for the journal."""
    print(f"gpuckpt: {text}", file=sys.stderr, flush=True)


@contextmanager
def _serving(wanted: Wanted) -> Iterator[Serving]:
    """Brings the server up, and takes it down at the end, whatever happens."""
    procfs.adopt_orphans()
    # others on this node may be starting, too
    locks.be_patient(LOCK_PATIENCE_S)
    _clear_away(wanted)
    serving = _bring_up(wanted)
    path = _path(wanted.name)
    write_json(path, asdict(serving))
    say(_in_words(serving))
    try:
        yield serving
    finally:
        # a second signal must not leave the server behind
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: None)
        remove(path)
        _take_down(wanted, serving)


def _clear_away(wanted: Wanted) -> None:
    """Ends what a supervisor that was killed has left. Raises CkptError (server_running) if another one serves."""
    noted = _noted(wanted.name)
    if noted is None:
        return
    if noted.supervisor.lives():
        raise CkptError(
            "server_running",
            f"{wanted.name} is being served by {noted.supervisor} since {noted.since}; stop that one first.",
        )
    _stop(wanted, noted)
    remove(_path(wanted.name))


def _bring_up(wanted: Wanted) -> Serving:
    """Restore, or else start cold. Raises CkptError if neither works."""
    began = time.monotonic()
    state = start.examine(wanted)
    why, at_fault = state.misfits, bool(state.misfits)
    if state.golden is not None and not state.misfits:
        try:
            start.restore_golden(wanted, state.golden.instance, state.golden.folder)
            return _came_up(wanted, state.golden.instance, "restored", [], False, began, state.now)
        except CkptError as error:
            why, at_fault = [error.message, *error.log_lines[:3]], error.reason in CHECKPOINT_AT_FAULT
            say(f"the golden checkpoint of {wanted.name} is not restored: {error.message}")
    instance = start.new_instance(wanted)
    start.start_cold(wanted, instance)
    return _came_up(wanted, instance, "cold", why, at_fault, began, state.now)


def _came_up(
    wanted: Wanted, instance: str, mode: str, why: list[str], renew: bool, began: float, identity: Identity
) -> Serving:
    seconds = round(time.monotonic() - began, 3)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    me = locks.this_process("gpuckpt-serve")
    return Serving(wanted.name, instance, mode, why, renew, seconds, now, me, identity)


def _in_words(serving: Serving) -> str:
    if serving.mode == "restored":
        return f"{serving.name} was restored and answered after {serving.answered_s:.2f} s."
    later = " A new checkpoint is made when it is stopped." if serving.renew else ""
    return f"{serving.name} was started cold in {serving.answered_s:.1f} s: {'; '.join(serving.why).removesuffix('.')}.{later}"


def _take_down(wanted: Wanted, serving: Serving) -> None:
    """Stops the server; where its checkpoint is to be made anew, by making it."""
    runtime = start.runtime_of(wanted, serving.instance)
    if serving.renew and runtime.instance().running and not _is_shutting_down():
        # not before: clients wait for what is imported at the top
        from . import make

        try:
            golden = make.make_of(wanted, serving.instance, serving.identity, serving.answered_s)
            say(f"a new golden checkpoint of {wanted.name} was made; its trial took {golden.first_token_s:.2f} s.")
            return
        except CkptError as error:
            say(f"no new golden checkpoint of {wanted.name}: {error.message}")
    _stop(wanted, serving)


def _is_shutting_down() -> bool:
    """Whether the machine is: a reboot does not wait for a checkpoint. Without systemd nobody knows."""
    return Commands().run(["systemctl", "is-system-running"]).stdout.strip() == "stopping"


def _stop(wanted: Wanted, serving: Serving) -> None:
    """Ends the server, which may finish what it is asked; the container that a checkpoint is restored into stays."""
    pid = start.runtime_of(wanted, serving.instance).instance().pid
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        _wait_for_any([pid], GRACE_S)
    if serving.mode == "restored":
        start.stop(wanted, serving.instance)
    else:
        start.discard(wanted, serving.instance)


def _wait_for_any(pids: list[int], limit_s: float = float("inf")) -> None:
    """Until one of the processes has ended, or for so long. Raises StopRequested at a signal."""
    until = time.monotonic() + limit_s
    poll = select.poll()
    handles = []
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
        if len(handles) < len(pids):
            return
        for handle in handles:
            poll.register(handle, select.POLLIN)
        while not poll.poll(min(REAP_INTERVAL_S, limit_s) * 1000) and time.monotonic() < until:
            _reap_orphans(pids)
    finally:
        for handle in handles:
            os.close(handle)


def _reap_orphans(known: list[int]) -> None:
    """Collects what the server has left behind: this process has become its parent."""
    for pid in read_text("/proc/thread-self/children").split():
        if int(pid) not in known:
            procfs.reap(int(pid))


@contextmanager
def _bound(address: Address) -> Iterator[socket.socket]:
    """A socket at the address, which refuses connections until it listens. Raises CkptError (port_taken)."""
    host, port = address
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
        except OSError as error:
            raise CkptError(
                "port_taken", f"cannot listen on {host} port {port} ({error.strerror}); give --listen another address."
            ) from error
        yield found


@contextmanager
def _proxy(wanted: Wanted, listener: int, idle_s: float | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """systemd's proxy from a socket to the server; it ends when no client was there for `idle_s`, if that is given."""
    spec = start.runtime_of(wanted, wanted.server["name"]).spec
    target = f"{spec.host}:{spec.port}"
    idle = [] if idle_s is None else [f"--exit-idle-time={idle_s:g}s"]
    # the number of the process that a socket is meant for is known in the child alone, and the socket has to be number 3
    script = f'export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@" {LISTEN_FD}<&{listener}'
    proxy = subprocess.Popen(["/bin/sh", "-c", script, "sh", PROXY, *idle, target], pass_fds=(listener,))
    try:
        yield proxy
    finally:
        proxy.terminate()
        proxy.wait()


@contextmanager
def _signals() -> Iterator[None]:
    def told(*_: object) -> NoReturn:
        raise StopRequested

    before = {number: signal.signal(number, told) for number in STOP_SIGNALS}
    try:
        yield
    except StopRequested:
        # before the server was up: what had begun has been put back
        sys.exit(OK)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _take_systemds_variables() -> dict[str, str]:
    """What systemd has told this process in its environment, which nothing that it starts shall have."""
    return {name: os.environ.pop(name) for name in SYSTEMDS_VARIABLES if name in os.environ}


def _notify(variables: Mapping[str, str], *lines: str) -> None:
    """Tells systemd, where it asked for it (sd_notify)."""
    address = variables.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.connect("\0" + address[1:] if address.startswith("@") else address)
            out.send("\n".join(lines).encode())


def status(name: str) -> Serving | None:
    """How a server came up; None if it is not served."""
    noted = _noted(name)
    return noted if noted is not None and noted.supervisor.lives() else None


def _noted(name: str) -> Serving | None:
    """What the last supervisor of a server has written, which may have been killed since."""
    with suppress(FormatError):
        raw = read_json(_path(name))
        return None if raw is None else build(Serving, raw)
    return None


def _path(name: str) -> str:
    return f"{FOLDER}/{name}.json"
