# SPDX-License-Identifier: GPL-3.0-or-later
"""The runtime `podman`: a container, checkpointed in place on the store or exported to an archive."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..checkpoints.manifest import Layout
from ..criu import network_lock
from ..errors import CkptError
from ..parsing import FormatError, parse_json, pick
from ..system import ending, mounts, private
from ..system.commands import SYSTEM_PATH, Job, Result, end_of_log, tail
from ..system.files import read_json, remove
from .base import DumpRequest, Evidence, Instance, OpenLog, RestoreRequest, Runtime, criu_traces, read_evidence

MANAGED_LABEL = "io.gpuckpt.managed"
# An image may carry the label above and hand it on to any container; this one is set by `podman run` alone.
SERVER_LABEL = "io.gpuckpt.server"
COMPRESSION = {"tar": "none", "tar.gz": "gzip", "tar.zst": "zstd"}
CHECKPOINT_TIMEOUT_S = 900.0
# podman waits for its own locks, and for an OCI runtime that may hang
PODMAN_LIMIT_S = 60.0
# what the monitor has to do when its container ended: note how, and unmount
MONITOR_LIMIT_S = 5.0
# of a server's log: enough for what went wrong first
LOG_LINES = 2000
KEEP = "--keep"
CLEAN_UP = ("container", "cleanup")
# where a container's monitor leaves the exit status for podman, and how podman calls a container that has not ended for it
EXITS = "/run/libpod/exits"
NOT_ENDED = ("running", "paused", "stopping")
# how a container is to be made, in podman's folder of it; podman writes it anew for a restore, and is lost without it
CONFIGURATION = "config.json"
RESTORERS = ("runc", "crun", "criu")
# when a container was checkpointed and restored, and how podman writes a time that never was
CHECKPOINT_TIMES = ("CheckpointedAt", "RestoredAt")
NEVER = "0001-01-01"
# in podman's folder of a container: a checkpoint is restored into it (podman forgets one that left it running)
RESTORED_INTO = "gpuckpt-restored-into"
DEVICE = "--device="
# What a server expects to write to; a root that is a folder of the node is there to be read.
SCRATCH = [f"--tmpfs={folder}:rw,nosuid,nodev,exec,notmpcopyup" for folder in ("/tmp", "/run", "/var/tmp")]


class PodmanRuntime(Runtime):
    """A server in a container that carries our label; others are never touched."""

    name = "podman"
    _container_id: str | None = None
    _userdata: str | None = None
    _log: OpenLog | None = None
    # what podman said last; asking it takes 30 ms
    _seen: Instance | None = None

    def require(self) -> None:
        self.criu.require(self.commands)
        self.criu.require_front()
        if shutil.which("podman", path=SYSTEM_PATH) is None:
            raise CkptError(
                "runtime_failed", "podman is not installed on this node; run provision.yml (role container_runtime)."
            )
        if self.spec.rootfs and not os.path.isdir(os.path.join(self.spec.rootfs, "usr")):
            raise CkptError(
                "runtime_failed",
                f"{self.spec.rootfs} is no root for a container; run provision.yml (role container_runtime mounts it).",
            )

    def instance(self) -> Instance:
        self._seen = None
        result = self._podman("container", "inspect", self._container_id or self.spec.name)
        if result.rc != 0:
            return Instance(exists=False)
        try:
            self._seen = self._parse_instance(result.stdout)
        except FormatError as error:
            raise CkptError(
                "runtime_failed",
                f"what `podman container inspect` says {error}; see that podman is one that provision.yml installs.",
                tail(result.stdout),
            ) from error
        self._userdata = self._seen.details["userdata"]
        return self._seen

    def _parse_instance(self, text: str) -> Instance:
        """The container that `podman container inspect` describes. Raises FormatError."""
        container = pick(parse_json(text), 0, kind=dict[str, Any])
        state = pick(container, "State", kind=dict[str, Any])
        times = [pick(state, key, kind=str, default=NEVER) for key in CHECKPOINT_TIMES]
        folder = pick(container, "StaticDir", kind=str)
        details = {
            "container_id": pick(container, "Id", kind=str),
            "userdata": folder,
            "image": {
                "name": pick(container, "ImageName", kind=str, default=None),
                "digest": pick(container, "ImageDigest", kind=str, default=None),
            },
            "status": pick(state, "Status", kind=str),
            "managed": pick(container, "Config", "Labels", SERVER_LABEL, kind=str, default=None) == self.spec.name,
            "checkpointed": pick(state, "Checkpointed", kind=bool, default=False),
            "oci_runtime": pick(container, "OCIRuntime", kind=str),
            "belongs_to_checkpoint": any(not moment.startswith(NEVER) for moment in times)
            or os.path.exists(os.path.join(folder, RESTORED_INTO)),
        }
        pid = pick(state, "Pid", kind=int) or None
        if not pick(state, "Running", kind=bool):
            # podman does not know of a server whose monitor, or itself, was killed during a restore
            inside = ending.living(ending.Container(details["container_id"]).holds)
            pid = min(inside, key=lambda process: process.starttime).pid if inside else None
        return Instance(True, pid is not None, pid, details)

    def prepare_start(self) -> None:
        present = self._own()
        if present.exists:
            raise CkptError(
                "runtime_failed",
                f"a container {self.spec.name} exists already"
                f"{' and is what a checkpoint restores into' if present.details['checkpointed'] else ''}; "
                "remove it with ckpt_stop, or give this server another name.",
            )

    def start(self) -> Job:
        spec = self.spec
        options = ["--detach", "--name", spec.name, "--workdir", spec.cwd]
        options += ["--label", f"{MANAGED_LABEL}=true", "--label", f"{SERVER_LABEL}={spec.name}"]
        # Words of a command are seen by every user of the node, remembered by podman, and kept in records.
        options += ["--env-file", "/dev/stdin"]
        if spec.env_secret_file:
            options += ["--env-file", spec.env_secret_file]
        if spec.privileged:
            options.append("--privileged")
        else:
            options += ["--cap-drop=all", *(f"--cap-add={name}" for name in spec.capabilities)]
        options += with_devices(spec.podman_args)
        root = [*SCRATCH, "--rootfs", spec.rootfs] if spec.rootfs else [str(spec.image)]
        environment = "".join(f"{key}={value}\n" for key, value in sorted(spec.env.items()))
        return self.commands.start(["podman", "run", *options, *root, *spec.command], stdin=environment)

    def check_start(self, result: Result) -> None:
        if result.rc == 0:
            return
        lines = tail(result.stderr)
        raise CkptError(
            "runtime_failed",
            f"podman cannot start {self.spec.name}: {_last_error(lines)}. "
            "Correct server.image, server.rootfs, server.command or server.podman_args, or run provision.yml.",
            lines,
        )

    def prepare_checkpoint(self, request: DumpRequest) -> None:
        for folder in (request.layout.folder, request.layout.images, request.layout.work):
            private.make_folder(folder)
        self._own()
        self._forget_traces("dump")
        # a container that was restored with --keep has its old checkpoint there, and so has one whose dump was killed
        self._unmount()
        if not request.layout.archive:
            self._mount(request.layout.images)

    def checkpoint(self, request: DumpRequest) -> Job:
        options = ["--print-stats", KEEP]
        if request.leave_running:
            options.append("--leave-running")
        if request.tcp_established:
            options.append("--tcp-established")
        if request.layout.archive:
            private.make_file(request.layout.archive)
            options += ["--export", request.layout.archive, "--compress", COMPRESSION[request.layout.source]]
        self._watch_log("dump")
        argv = ["podman", "container", "checkpoint", *options, *request.flags, self.spec.name]
        return self.commands.start(argv, CHECKPOINT_TIMEOUT_S)

    def finish_checkpoint(self, request: DumpRequest) -> dict[str, Any]:
        container = self.instance()
        self._unmount()
        if not request.layout.archive:
            with open(os.path.join(container.details["userdata"], RESTORED_INTO), "a", encoding="ascii"):
                pass
            shutil.copy2(os.path.join(container.details["userdata"], CONFIGURATION), request.layout.work)
        elif not request.leave_running:
            self.remove()
        details = {key: container.details[key] for key in ("container_id", "userdata", "image")}
        return {**details, "name": self.spec.name}

    def abandon_checkpoint(self) -> None:
        container = self.instance()
        if container.exists:
            ending.Container(container.details["container_id"]).thaw()
        network_lock.remove_stale(self.commands, container.pid)
        self._unmount()

    def prepare_restore(self, request: RestoreRequest) -> list[str]:
        if request.layout.archive:
            if self._own().exists:
                self.remove()
            self._userdata = request.manifest.instance.get("userdata")
            self._container_id = request.manifest.instance.get("container_id")
            return [request.layout.archive]
        self._container_id = request.manifest.instance.get("container_id")
        container = self._own()
        if not container.exists:
            raise CkptError(
                "images_missing",
                f"the container that the checkpoint {request.manifest.name} restores into was removed; "
                "take the checkpoint again, or use a source that carries the container (tar).",
            )
        self.stop()
        self._restore_configuration(request.layout, container.details["userdata"])
        images = request.layout.images
        if KEEP not in request.flags:
            images = self._expendable_copy(request.layout)
        self._unmount()
        self._forget_traces("restore")
        self._mount(images)
        return [entry.path for entry in os.scandir(images) if entry.is_file()]

    def restore(self, request: RestoreRequest) -> Job:
        options = ["--print-stats", *request.flags]
        if request.manifest.tcp_established and "--tcp-established" not in options:
            options.append("--tcp-established")
        self._watch_log("restore")
        archive = request.layout.archive
        target = ["--import", archive] if archive else [str(self._container_id)]
        # a restore from damaged images may never end
        return self.commands.start(["podman", "container", "restore", *options, *target], self.spec.health_timeout_s)

    def evidence(self, action: str, layout: Layout) -> Evidence:
        assert self._log is not None
        assert self._userdata is not None
        log, stats = criu_traces(self._userdata, action)
        found = read_evidence(self._log, stats)
        for path in (log, stats):
            # copies for the reader; podman has deleted the originals, or the store is full
            with suppress(OSError):
                shutil.copy2(path, layout.work)
        return found

    def stop(self) -> None:
        container = self._last_seen()
        if container.running:
            self._end(("stop",), CLEAN_UP, container)
        if container.exists:
            self._unmount()
            self._sweep(container)
            self._bring_up_to_date()

    def remove(self) -> None:
        container = self._last_seen()
        if container.exists:
            self._unmount()
            self._end(("rm", "--force"), ("rm", "--force", "--time", "0"), container)
            self._sweep(container)
        elif self._container_id is not None:
            # podman was killed before it noted the container that it restores: its layers may be there already
            ending.Container(self._container_id).end()
            self._try("rm", "--force", "--time", "0", self._container_id)

    def running_kin(self) -> list[str]:
        if shutil.which("podman", path=SYSTEM_PATH) is None:
            return []
        listed = self._podman(
            "ps", "--filter", f"label={SERVER_LABEL}", "--format", f'{{{{index .Labels "{SERVER_LABEL}"}}}}'
        )
        return sorted(name for name in listed.stdout.split() if name.startswith(f"{self.spec.name}-"))

    def end_left_behind(self) -> None:
        if self._own().details.get("belongs_to_checkpoint"):
            self.stop()
        else:
            self.remove()

    def _end(self, ask: tuple[str, ...], correct: tuple[str, ...], container: Instance) -> None:
        """Ends the container: as podman does, or, where it fails or leaves something, without it.

        :param ask: podman's command for it.
        :param correct: podman's command that brings its own record up to date when nothing runs any more.
        :raises CkptError: runtime_failed, unless its processes are gone and its port is free afterwards.
        """
        self._seen = None
        identity = container.details["container_id"]
        remains = ending.Container(identity)
        said = None if (half := self._is_half_restored(container)) else self._try(*ask, "--time", "0", identity)
        if half or said is not None or not ending.wait_ended(remains.holds, MONITOR_LIMIT_S):
            left = remains.end()
            if left:
                raise CkptError(
                    "runtime_failed",
                    f"process {left[0]} of {self.spec.name} does not end although it was killed; "
                    "it hangs in the kernel or in the GPU's driver: see dmesg.",
                    said,
                )
            self._unmount_oci_runtime(container)
            said = self._try(*correct, identity)
            if said is not None:
                raise CkptError(
                    "runtime_failed",
                    f"{self.spec.name} has ended, but podman cannot clean up after it: {_last_error(said)}. "
                    f"Find out why with `podman {' '.join(correct)} {identity[:12]}`, then stop it again.",
                    said,
                )
        if container.running:
            self.require_port_given_back()

    def _sweep(self, container: Instance) -> None:
        """Removes what a restore that was broken off has left: mounts, the OCI runtime's record, cgroups.

        Nobody else is left who would, and the next restore fails on it.
        """
        runtime, identity = container.details["oci_runtime"], container.details["container_id"]
        if any(identity in point for point in mounts.points()):
            self._try(*CLEAN_UP, identity)
        if os.path.exists(_oci_folder(container)):
            self._unmount_oci_runtime(container)
            self.commands.run([runtime, "delete", "--force", identity], PODMAN_LIMIT_S)
        ending.Container(identity).remove_cgroups()

    def _bring_up_to_date(self) -> None:
        """Lets podman know that the container has ended, and what is mounted, where nobody has told it.

        A monitor that was killed leaves no exit status, and podman waits for one without end. A podman that was killed has not
        noted that it unmounted the container's root.
        """
        container = self.instance()
        if not container.exists:
            return
        identity = container.details["container_id"]
        if container.details["status"] in NOT_ENDED:
            os.makedirs(EXITS, exist_ok=True)
            with open(os.path.join(EXITS, identity), "w", encoding="ascii") as out:
                out.write(str(128 + signal.SIGKILL))
        self._try(*CLEAN_UP, identity)

    def _restore_configuration(self, layout: Layout, userdata: str) -> None:
        """Puts back what a podman that was killed had removed and not written anew."""
        kept = os.path.join(layout.work, CONFIGURATION)
        try:
            whole = read_json(os.path.join(userdata, CONFIGURATION)) is not None
        except ValueError:
            whole = False
        if not whole and os.path.exists(kept):
            shutil.copy2(kept, userdata)

    def _is_half_restored(self, container: Instance) -> bool:
        """Whether somebody still restores it, or was killed while he did."""
        inside = ending.living(ending.Container(container.details["container_id"]).holds)
        return any(process.comm.startswith(RESTORERS) for process in inside) or bool(_oci_mounts(container))

    def _unmount_oci_runtime(self, container: Instance) -> None:
        """Detaches the container's root from the OCI runtime's folder, which that runtime deletes with all that is in it."""
        for point in _oci_mounts(container):
            self.commands.run(["umount", "--lazy", point])

    def _try(self, *arguments: str) -> list[str] | None:
        """Runs podman. Returns None after a success, else what it said."""
        try:
            result = self._podman(*arguments)
        except CkptError as error:
            return [*error.log_lines, error.message]
        return tail(result.stderr) if result.rc != 0 else None

    def log_tail(self) -> list[str]:
        result = self._podman("logs", "--tail", str(LOG_LINES), self._container_id or self.spec.name)
        return end_of_log(result.stdout + result.stderr)

    def command_stats(self, result: Result) -> dict[str, Any]:
        """What --print-stats printed (times in microseconds); it comes with a failure too, then empty."""
        start = result.stdout.find("{")
        if start < 0:
            return {}
        try:
            stats = parse_json(result.stdout[start:])
        except FormatError:
            return {}
        return stats if isinstance(stats, dict) else {}

    def _watch_log(self, action: str) -> None:
        """Holds CRIU's log open from its beginning: podman deletes it without --keep, and after some failures."""
        self._log = OpenLog(criu_traces(str(self._userdata), action)[0])

    def _forget_traces(self, action: str) -> None:
        for path in criu_traces(str(self._userdata), action):
            remove(path)

    def _podman(self, *arguments: str) -> Result:
        return self.commands.run(["podman", *arguments], PODMAN_LIMIT_S)

    def _last_seen(self) -> Instance:
        """A container that ran a moment ago as podman described it then, any other as it is now; see `_own`."""
        try:
            return self._own(self._seen if self._seen is not None and self._seen.running else self.instance())
        except CkptError as error:
            if error.reason == "timeout" and self._container_id is not None:
                # podman hangs: what we know to be ours ends all the same
                ending.Container(self._container_id).end()
            raise

    def _own(self, container: Instance | None = None) -> Instance:
        """The container, if there is one. Raises CkptError (runtime_failed) if it is not ours."""
        container = container or self.instance()
        if container.exists and not container.details["managed"]:
            raise CkptError(
                "runtime_failed",
                f"the container {self.spec.name} was not made by gpuckpt (no label {SERVER_LABEL}) and is left "
                "alone; give the server another name.",
            )
        return container

    def _mount_point(self) -> str:
        return os.path.join(self._userdata or self.instance().details["userdata"], "checkpoint")

    def _mount(self, images: str) -> None:
        """Lets podman find the store's folder where it keeps a container's checkpoint."""
        point = self._mount_point()
        os.makedirs(point, mode=0o700, exist_ok=True)
        result = self.commands.run(["mount", "--bind", images, point])
        if result.rc != 0:
            raise CkptError(
                "runtime_failed",
                f"cannot bind {images} to {point}: {result.stderr.strip()}; the modules need root with CAP_SYS_ADMIN.",
            )

    def _unmount(self) -> None:
        point = self._mount_point()
        for _ in range(mounts.layers_at(point)):
            # a process restored from mapped images still has them open: detach, the kernel lets go with the process
            self.commands.run(["umount", "--lazy", point])

    def _expendable_copy(self, layout: Layout) -> str:
        """Without --keep podman deletes the images after the restore, within the clock: give it a true copy."""
        copy = os.path.join(layout.folder, "expendable")
        shutil.rmtree(copy, ignore_errors=True)
        try:
            shutil.copytree(layout.images, copy)
        except (OSError, shutil.Error) as error:
            shutil.rmtree(copy, ignore_errors=True)
            raise CkptError(
                "store_full",
                f"a restore without {KEEP} deletes its images and so works on a copy, which does not fit ({error}); "
                f"make the store larger, or restore with {KEEP}.",
            ) from error
        os.chmod(copy, 0o700)
        return copy


def _oci_folder(container: Instance) -> str:
    """Where the OCI runtime keeps its record of a container."""
    return f"/run/{os.path.basename(container.details['oci_runtime'])}/{container.details['container_id']}"


def _oci_mounts(container: Instance) -> list[str]:
    """What the OCI runtime has mounted there for a restore, the last one first."""
    return [point for point in reversed(mounts.points()) if point.startswith(f"{_oci_folder(container)}/")]


def with_devices(arguments: Iterable[str]) -> list[str]:
    """podman's arguments, each `--device=` of a pattern replaced by one for every device node that matches.

    Raises CkptError (runtime_failed) if none does.
    """
    expanded = []
    for argument in arguments:
        pattern = argument.removeprefix(DEVICE)
        if pattern == argument or not glob.has_magic(pattern):
            expanded.append(argument)
            continue
        found = [path for path in sorted(glob.glob(pattern)) if stat.S_ISCHR(os.stat(path).st_mode)]
        if not found:
            raise CkptError(
                "runtime_failed", f"no device matches {pattern}; load its driver, or correct server.podman_args."
            )
        expanded += [DEVICE + path for path in found]
    return expanded


def _last_error(lines: list[str]) -> str:
    return lines[-1].removeprefix("Error: ").rstrip(".") if lines else "no message"
