# SPDX-License-Identifier: GPL-3.0-or-later
"""Where copies lie: a few verbs on named objects, spoken through rclone or, with a registry, through skopeo.

The node talks to the remote itself. Credentials are in a file that those programs read: never in a command's words, which every
user of a node can see.
"""

from __future__ import annotations

import configparser
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..errors import CkptError
from ..parsing import FormatError, parse_json, pick
from ..system import private
from ..system.commands import SYSTEM_PATH, Commands, Result, tail
from . import parts

# no single object takes as long: a part of 8 GiB at 1 MiB/s
OBJECT_LIMIT_S = 9000.0
LIST_LIMIT_S = 600.0
# a remote that is gone is told of within a minute or two
RCLONE_PATIENCE = ("--contimeout=15s", "--timeout=60s", "--retries=3", "--low-level-retries=3", "--retries-sleep=2s")
FOLDER_MISSING, FILE_MISSING = 3, 4
# keys of rclone's file whose values are no secrets; all others are taken out of what rclone said
PUBLIC_KEYS = frozenset(
    [
        "type",
        "vendor",
        "provider",
        "region",
        "endpoint",
        "url",
        "host",
        "port",
        "user",
        "env_auth",
        "shell_type",
        "disable_hashcheck",
        "force_path_style",
        "acl",
        "storage_class",
        "location_constraint",
        "known_hosts_file",
        "no_check_bucket",
    ]
)
SHORTEST_SECRET = 4
# what programs say, and what it means
SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "remote_refused",
        re.compile(
            r"\b401\b|\b403\b|AccessDenied|Access Denied|InvalidAccessKeyId|SignatureDoesNotMatch|unable to authenticate"
            r"|unauthorized|authentication required|permission denied|denied: |invalid username/password"
            r"|couldn't decrypt configuration|\bForbidden\b",
            re.IGNORECASE,
        ),
    ),
    (
        "store_full",
        re.compile(
            r"no space left|remaining disk space|insufficient storage|\b507\b|quota exceeded|QuotaExceeded|disk quota",
            re.IGNORECASE,
        ),
    ),
    (
        "remote_unreachable",
        re.compile(
            r"connection refused|no such host|i/o timeout|network is unreachable|no route to host|connection reset"
            r"|deadline exceeded|TLS handshake timeout|unexpected EOF|\bEOF\b|broken pipe|server misbehaving|connection lost"
            r"|use of closed network connection",
            re.IGNORECASE,
        ),
    ),
)
# the same of a folder, by the kernel's numbers
FOLDER_SIGNS: tuple[tuple[tuple[int, ...], str, str], ...] = (
    (
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "remote_refused",
        "root may not do that there: see its mount and its owner",
    ),
    ((errno.ENOSPC, errno.EDQUOT), "store_full", "it has no room left: remove old copies there, or give it more"),
    (
        (errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN, errno.EIO),
        "remote_unreachable",
        "its server does not answer: see the mount, and call again; what was copied stays",
    ),
)


class Remote(ABC):
    """Objects of one golden checkpoint's name. Keys are FOLDER/NAME; a written object is whole, or is written again."""

    # for messages
    where: str

    @abstractmethod
    def objects(self) -> dict[str, int | None]:
        """Every object with its size, None where the remote does not tell; empty where there is nothing. Raises CkptError."""

    @abstractmethod
    def put(self, key: str, content: int) -> None:
        """Writes an object from an open file in memory. Raises CkptError."""

    @abstractmethod
    def get(self, key: str, into: int) -> None:
        """Reads an object into an empty open file. Raises CkptError."""

    @abstractmethod
    def remove(self, keys: Iterable[str]) -> None:
        """Removes objects, as far as they are there. Raises CkptError."""

    @contextmanager
    def written(self, key: str) -> Iterator[int]:
        """Within, an open file to be filled, which becomes an object afterwards. It may hold something. Raises CkptError."""
        with parts.room_for_part() as content:
            yield content
            self.put(key, content)

    @contextmanager
    def read(self, key: str) -> Iterator[int]:
        """Within, an object as an open file. Raises CkptError."""
        with parts.room_for_part() as content:
            self.get(key, content)
            yield content

    @abstractmethod
    def settle(self, keys: Iterable[str]) -> None:
        """Until these objects outlive a loss of power, as far as that can be asked for. Raises CkptError."""

    def remove_folder(self, folder: str, names: Iterable[str]) -> None:
        """Removes a folder with the objects that it is known to have. Raises CkptError."""
        self.remove(f"{folder}/{name}" for name in names)

    def put_json(self, key: str, value: object) -> None:
        """Writes a small document."""
        with parts.in_memory() as file:
            os.write(file, json.dumps(value).encode())
            self.put(key, file)

    def get_json(self, key: str) -> object:
        """Reads a small document; None if it cannot be read. Raises CkptError."""
        with parts.in_memory() as file:
            self.get(key, file)
            try:
                return parse_json(content_of(file))
            except FormatError:
                return None


def content_of(file: int) -> bytes:
    """All of an open file."""
    return os.pread(file, os.fstat(file).st_size, 0)


@dataclass(frozen=True)
class Access:
    """How a remote is reached: either an address as rclone has it, or a registry; and the file with its credentials."""

    rclone: str | None = None
    registry: str | None = None
    credentials: str | None = None
    verify_tls: bool = True


def open_remote(access: Access, name: str, commands: Commands) -> Remote:
    """The remote for one name. Raises CkptError (bad_input)."""
    if (access.rclone is None) == (access.registry is None):
        raise CkptError("bad_input", "name where copies lie: an address of rclone, or a registry, and not both.")
    if access.credentials is not None:
        require_private(access.credentials)
    if access.registry is not None:
        return RegistryRemote(access, name, commands)
    if str(access.rclone).startswith("/"):
        return FolderRemote(access, name)
    return RcloneRemote(access, name, commands)


def require_private(path: str) -> None:
    """Raises CkptError (bad_input) for a file of credentials that is missing, or that others can read."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise CkptError(
            "bad_input", f"{path} cannot be read ({error.strerror}); put it on the node, for root alone."
        ) from error
    if status.st_mode & private.OTHERS:
        raise CkptError(
            "bad_input",
            f"{path} holds credentials or keys, and others can read it (mode {stat.S_IMODE(status.st_mode):04o}); "
            f"close it: chmod 0600 {path}",
        )


class FolderRemote(Remote):
    """A folder of the node, such as one that all nodes mount. The kernel copies, and no program is needed."""

    # what is not whole yet
    PARTIAL = re.compile(r"\..*\.partial")

    def __init__(self, access: Access, name: str) -> None:
        self.where = os.path.join(str(access.rclone), name)

    def objects(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        with _folder_explained(f"{self.where} cannot be listed"):
            for entry in _entries(self.where):
                for file in _entries(entry.path) if entry.is_dir(follow_symlinks=False) else ():
                    # another node may remove it meanwhile
                    with suppress(FileNotFoundError):
                        if file.is_file(follow_symlinks=False) and not self.PARTIAL.fullmatch(file.name):
                            found[f"{entry.name}/{file.name}"] = file.stat(follow_symlinks=False).st_size
        return found

    @contextmanager
    def written(self, key: str) -> Iterator[int]:
        path = self._path(key)
        folder, name = os.path.split(path)
        partial = os.path.join(folder, f".{name}.partial")
        with _folder_explained(f"{self.where} cannot be written ({key})"):
            os.makedirs(folder, mode=private.FOLDER_MODE, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(partial, flags, private.FILE_MODE)
            try:
                try:
                    yield descriptor
                    parts.begin_to_write_all(descriptor)
                finally:
                    os.close(descriptor)
                os.replace(partial, path)
            except BaseException:
                os.unlink(partial)
                raise

    def put(self, key: str, content: int) -> None:
        with self.written(key) as out:
            parts.gather([parts.Piece(key, 0, os.fstat(content).st_size)], {key: content}, out)

    @contextmanager
    def read(self, key: str) -> Iterator[int]:
        with _folder_explained(f"{self.where} cannot be read ({key})"):
            try:
                descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError as error:
                raise _gone(key, self.where) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def get(self, key: str, into: int) -> None:
        with self.read(key) as content:
            parts.gather([parts.Piece(key, 0, os.fstat(content).st_size)], {key: content}, into)

    def remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            with _folder_explained(f"{self.where} cannot be removed ({key})"), suppress(FileNotFoundError):
                os.unlink(self._path(key))

    def remove_folder(self, folder: str, names: Iterable[str]) -> None:
        with _folder_explained(f"{self.where} cannot be removed ({folder})"), suppress(FileNotFoundError):
            shutil.rmtree(self._path(folder))

    def settle(self, keys: Iterable[str]) -> None:
        paths = [self._path(key) for key in keys]
        with _folder_explained(f"{self.where} cannot be written"):
            for path in [*paths, *{os.path.dirname(path) for path in paths}]:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def _path(self, key: str) -> str:
        return os.path.join(self.where, key)


class RcloneRemote(Remote):
    """Whatever rclone reaches: SFTP, WebDAV, object stores."""

    ADDRESS = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_ .+@-]*:[^,]*|/.*)")

    def __init__(self, access: Access, name: str, commands: Commands) -> None:
        address = str(access.rclone)
        if not self.ADDRESS.fullmatch(address) or "://" in address:
            raise CkptError(
                "bad_input",
                f"{_without_password(address)!r:.200} is no address for copies: a folder, or REMOTE:PATH with the remote "
                "described in rclone's configuration. Credentials belong there, never into the address.",
            )
        self._base = address + ("" if address.endswith((":", "/")) else "/") + name
        self.where = self._base
        self._commands = commands
        # rclone's own default is a file of root's, which nobody has named
        self._options = [
            f"--config={access.credentials or ''}",
            "--ask-password=false",
            "--use-json-log=false",
            *RCLONE_PATIENCE,
        ]
        if not access.verify_tls:
            self._options.append("--no-check-certificate")
        self._secrets = _secrets_of(access.credentials)

    def objects(self) -> dict[str, int | None]:
        result = self._run(
            ["lsjson", "--recursive", "--files-only", "--no-modtime", "--no-mimetype", self._base], LIST_LIMIT_S
        )
        if result.rc == FOLDER_MISSING:
            return {}
        self._require(result, "listed")
        try:
            found = parse_json(result.stdout)
            return {pick(entry, "Path", kind=str): pick(entry, "Size", kind=int) for entry in found}
        except (FormatError, TypeError) as error:
            raise CkptError("remote_failed", f"what rclone lists at {self.where} {error}; see its version.") from error

    def put(self, key: str, content: int) -> None:
        # rclone compares sizes afterwards, and whoever fetches compares our digests: its own would be another read of everything
        options = ["--copy-links", "--ignore-checksum", "--ignore-times"]
        result = self._run(["copyto", *options, f"/proc/{os.getpid()}/fd/{content}", f"{self._base}/{key}"])
        self._require(result, f"written ({key})")

    def get(self, key: str, into: int) -> None:
        os.lseek(into, 0, os.SEEK_SET)
        result = self._run(["cat", f"{self._base}/{key}"], into=into)
        parts.ends_here(into)
        if result.rc in (FOLDER_MISSING, FILE_MISSING):
            raise _gone(key, self.where)
        self._require(result, f"read ({key})")

    def remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            result = self._run(["deletefile", f"{self._base}/{key}"], LIST_LIMIT_S)
            if result.rc not in (FOLDER_MISSING, FILE_MISSING) and "doesn't exist" not in result.stderr:
                self._require(result, f"removed ({key})")

    def remove_folder(self, folder: str, names: Iterable[str]) -> None:
        result = self._run(["purge", f"{self._base}/{folder}"], LIST_LIMIT_S)
        if result.rc not in (FOLDER_MISSING, FILE_MISSING):
            self._require(result, f"removed ({folder})")

    def settle(self, keys: Iterable[str]) -> None:
        """Is up to the server."""

    def _run(self, words: Sequence[str], limit_s: float = OBJECT_LIMIT_S, into: int | None = None) -> Result:
        argv = ["rclone", words[0], *self._options, *words[1:]]
        return _run(self._commands, argv, limit_s, (None, into))

    def _require(self, result: Result, what: str) -> None:
        if result.rc:
            raise explain("rclone", f"{self.where} cannot be {what}", result, self._secrets)


class RegistryRemote(Remote):
    """A registry of container images: each object is an image of one layer, under a tag of its own."""

    ADDRESS = re.compile(r"[a-z0-9.-]+(?::[0-9]+)?(?:/[a-z0-9]+(?:[._-][a-z0-9]+)*)*")
    REPOSITORY = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
    MANIFEST = "application/vnd.oci.image.manifest.v1+json"
    CONFIGURATION = b"{}"

    def __init__(self, access: Access, name: str, commands: Commands) -> None:
        address = str(access.registry)
        if not self.ADDRESS.fullmatch(address):
            raise CkptError(
                "bad_input",
                f"{_without_password(address)!r:.200} is no address of a registry, such as registry.example.org/golden. "
                "Credentials belong into the file of the registry's client, never into the address.",
            )
        if not self.REPOSITORY.fullmatch(name):
            raise CkptError(
                "bad_input",
                f"the name {name} cannot be that of a repository: lower-case letters, digits, `.`, `_`, `-`.",
            )
        self.where = f"{address}/{name}"
        self._commands = commands
        self._authentication = [f"--authfile={access.credentials}"] if access.credentials else []
        self._tls = str(access.verify_tls).lower()

    def objects(self) -> dict[str, int | None]:
        argv = ["skopeo", "list-tags", *self._authentication, f"--tls-verify={self._tls}", f"docker://{self.where}"]
        result = _run(self._commands, argv, LIST_LIMIT_S)
        if result.rc and re.search(r"\b404\b|name unknown|repository name not known", result.stderr, re.IGNORECASE):
            return {}
        self._require(result, "listed")
        try:
            tags = pick(parse_json(result.stdout), "Tags", kind=list[str], default=[])
        except FormatError as error:
            raise CkptError("remote_failed", f"what skopeo lists at {self.where} {error}; see its version.") from error
        return dict.fromkeys((_key_of(tag) for tag in tags), None)

    def put(self, key: str, content: int) -> None:
        with _folder() as folder:
            size, digest = os.fstat(content).st_size, parts.digest_of(content)
            os.symlink(f"/proc/{os.getpid()}/fd/{content}", os.path.join(folder, digest))
            configuration = hashlib.sha256(self.CONFIGURATION).hexdigest()
            _write(folder, configuration, self.CONFIGURATION)
            _write(folder, "version", b"Directory Transport Version: 1.1\n")
            manifest = {
                "schemaVersion": 2,
                "mediaType": self.MANIFEST,
                "config": _descriptor(
                    "application/vnd.gpuckpt.object.config.v1+json", len(self.CONFIGURATION), configuration
                ),
                "layers": [_descriptor("application/vnd.gpuckpt.object.v1", size, digest)],
                # a registry removes images by digest: two objects of one content must not be one image
                "annotations": {"org.opencontainers.image.title": key},
            }
            _write(folder, "manifest.json", json.dumps(manifest).encode())
            result = self._copy([f"--dest-tls-verify={self._tls}"], f"dir:{folder}", self._reference(key))
            self._require(result, f"written ({key})")

    def get(self, key: str, into: int) -> None:
        with _folder() as folder:
            result = self._copy([f"--src-tls-verify={self._tls}"], self._reference(key), f"dir:{folder}")
            if result.rc and re.search(r"manifest unknown|\b404\b", result.stderr, re.IGNORECASE):
                raise _gone(key, self.where)
            self._require(result, f"read ({key})")
            try:
                with open(os.path.join(folder, "manifest.json"), "rb") as source:
                    layer = pick(parse_json(source.read()), "layers", 0, "digest", kind=str)
            except FormatError as error:
                raise CkptError(
                    "remote_failed", f"{self.where} has an object {key} that is not ours: it {error}."
                ) from error
            with open(os.path.join(folder, os.path.basename(layer.rpartition(":")[2])), "rb") as source:
                size = os.fstat(source.fileno()).st_size
                parts.gather([parts.Piece(key, 0, size)], {key: source.fileno()}, into)

    def remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            argv = ["skopeo", "delete", *self._authentication, f"--tls-verify={self._tls}", self._reference(key)]
            result = _run(self._commands, argv, LIST_LIMIT_S)
            if result.rc and not re.search(
                r"manifest unknown|\b404\b|Unable to delete .* Image may not exist", result.stderr
            ):
                self._require(result, f"removed ({key}); see that the registry allows deletion")

    def settle(self, keys: Iterable[str]) -> None:
        """Is up to the registry."""

    def _reference(self, key: str) -> str:
        return f"docker://{self.where}:{key.replace('/', '.', 1)}"

    def _copy(self, options: Sequence[str], source: str, target: str) -> Result:
        argv = ["skopeo", "--insecure-policy", "copy", "--preserve-digests", "--quiet", *self._authentication, *options]
        return _run(self._commands, [*argv, source, target])

    def _require(self, result: Result, what: str) -> None:
        if result.rc:
            raise explain("skopeo", f"{self.where} cannot be {what}", result)


def explain(program: str, what: str, result: Result, secrets: Iterable[str] = ()) -> CkptError:
    """The failure that a program's message stands for."""
    said = result.stderr
    for secret in secrets:
        said = said.replace(secret, "(not shown)")
    lines = tail(said)
    reason = next((reason for reason, sign in SIGNS if sign.search(said)), "remote_failed")
    fix = {
        "remote_refused": "the credentials are wrong, or allow too little: correct the file that the play names",
        "store_full": "it has no room left: remove old copies there, or give it more",
        "remote_unreachable": "nobody answers: see the network and the address, and call again; what was copied stays",
        "remote_failed": "see the log lines",
    }[reason]
    last = re.sub(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d ", "", lines[-1]) if lines else f"exit status {result.rc}"
    return CkptError(reason, f"{what}; {fix} ({program}: {last[:300]}).", lines)


def _run(
    commands: Commands,
    argv: Sequence[str],
    limit_s: float = OBJECT_LIMIT_S,
    files: tuple[int | None, int | None] = (None, None),
) -> Result:
    """Runs one of the programs. Raises CkptError (runtime_failed) where it is not installed."""
    if shutil.which(argv[0], path=SYSTEM_PATH) is None:
        raise CkptError("runtime_failed", f"{argv[0]} is not installed on this node; role copies installs it.")
    return commands.start(argv, limit_s, files=files).wait()


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder, nothing if it is not there."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except FileNotFoundError:
        return []


@contextmanager
def _folder_explained(what: str) -> Iterator[None]:
    """Within, what the kernel says of a folder of copies is told as it is of other places."""
    try:
        yield
    except OSError as error:
        reason, fix = next(
            (known for codes, *known in FOLDER_SIGNS if error.errno in codes), ("remote_failed", "see the folder")
        )
        raise CkptError(reason, f"{what}; {fix} ({error.strerror}).") from error


def _gone(key: str, where: str) -> CkptError:
    return CkptError("images_missing", f"{key} is not at {where} any more: it was removed meanwhile; call again.")


def _secrets_of(path: str | None) -> list[str]:
    """Values of rclone's configuration that nobody shall read."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        with open(path or os.devnull, encoding="utf-8", errors="replace") as source:
            parser.read_file(source)
    except configparser.Error:
        # an encrypted one, or one that rclone itself will complain about
        return []
    values = (value for section in parser.values() for key, value in section.items() if key not in PUBLIC_KEYS)
    return sorted(
        {value for value in values if len(value) >= SHORTEST_SECRET and value not in ("true", "false")},
        key=len,
        reverse=True,
    )


def _without_password(address: str) -> str:
    """An address for a message. What may be a password is not repeated."""
    return address if not set("@,") & set(address) else f"{address[:4]}…"


@contextmanager
def _folder() -> Iterator[str]:
    """A folder for one object. On the disk and not in memory: it is written once, and removed before the disk has it."""
    private.make_folders(SCRATCH)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        yield folder


SCRATCH = "/var/lib/gpuckpt/copies/scratch"


def _write(folder: str, name: str, content: bytes) -> None:
    with open(os.path.join(folder, name), "wb") as out:
        out.write(content)


def _descriptor(kind: str, size: int, digest: str) -> Mapping[str, object]:
    return {"mediaType": kind, "size": size, "digest": f"sha256:{digest}"}


def _key_of(tag: str) -> str:
    """The key whose tag this is. The folder in it has no dot; the name may."""
    head, dot, rest = tag.partition(".")
    return f"{head}/{rest}" if dot else tag
