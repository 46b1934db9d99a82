# SPDX-License-Identifier: GPL-3.0-or-later
"""Packing and unpacking images, for checkpoints that travel as one file."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from ..errors import CkptError
from ..system import private
from ..system.commands import Commands, system_environment

COMPRESSORS = {".tar": None, ".gz": "gzip", ".zst": "zstd"}
TIMEOUT_S = 3600.0
# larger ones are slower: each is memory that the kernel maps anew
BLOCK_BYTES = 1 << 17
FOLDER_ITSELF = "."


class _Member(tarfile.TarInfo):
    """A member whose head must be right: tarfile takes a damaged one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Member:
        """The next member. Raises tarfile.ReadError where there is neither one nor the end."""
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed leaves it out
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def pack(commands: Commands, folder: str, path: str) -> None:
    """Writes the files of `folder` to the archive `path`, for root alone. Raises CkptError (store_full, runtime_failed)."""
    compressor = _compressor(path)
    private.make_file(path)
    options = [f"--file={path}", f"--directory={folder}", *([f"--{compressor}"] if compressor else [])]
    result = commands.run(["tar", "--create", *options, FOLDER_ITSELF], TIMEOUT_S)
    if result.rc == 0:
        return
    lines = result.stderr.strip().splitlines()
    # tar tells a write that fell short by its size alone, "Wrote only 4096 of 10240 bytes"
    if "No space left" in result.stderr or "Wrote only" in result.stderr:
        raise _store_full(lines)
    raise CkptError("runtime_failed", f"tar failed ({lines[0] if lines else result.rc}); see the log lines.", lines)


def unpack(commands: Commands, path: str, folder: str) -> None:
    """Unpacks an archive that `pack` wrote to `folder`, which is new: images are regular files, and nothing else is unpacked.

    Raises CkptError (store_full, images_truncated, bad_input).
    """
    private.make_folder(folder)
    try:
        with _plain_bytes(commands, path) as stream, _open(stream) as packed:
            for member in packed:
                if not _is_folder_itself(member):
                    _unpack_member(stream, packed, member, folder)
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        raise CkptError(
            "images_truncated", f"the archive {path} is damaged ({error}); take the checkpoint again."
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _store_full([str(error)]) from error
        raise CkptError("runtime_failed", f"the archive {path} cannot be unpacked ({error}).") from error


def _open(stream: IO[bytes]) -> tarfile.TarFile:
    """An archive, read from its beginning to its end where it is a pipe."""
    if stream.seekable():
        return tarfile.open(fileobj=stream, mode="r:", tarinfo=_Member)
    return tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK_BYTES, tarinfo=_Member)


def _is_folder_itself(member: tarfile.TarInfo) -> bool:
    return member.isdir() and member.name == FOLDER_ITSELF


def _unpack_member(stream: IO[bytes], packed: tarfile.TarFile, member: tarfile.TarInfo, folder: str) -> None:
    """Writes one member, with an owner and a mode of ours. Raises CkptError (bad_input) if it is no image."""
    name = member.name.removeprefix("./")
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or "/" in name or name in ("", ".", ".."):
        raise CkptError(
            "bad_input",
            f"the archive holds {member.name!r}, which is no image of a checkpoint; it did not come from ckpt_checkpoint, "
            "so find out where it is from and do not restore it.",
        )
    target = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, private.FILE_MODE)
    with os.fdopen(target, "wb") as out:
        if stream.seekable():
            _copy_range(stream.fileno(), target, member)
        else:
            source = packed.extractfile(member)
            assert source is not None
            shutil.copyfileobj(source, out, BLOCK_BYTES)


def _copy_range(source: int, target: int, member: tarfile.TarInfo) -> None:
    """Lets the kernel copy a member's bytes. Raises EOFError if the archive ends before."""
    done = 0
    while done < member.size:
        count = os.sendfile(target, source, member.offset_data + done, member.size - done)
        if not count:
            raise EOFError("unexpected end of data")
        done += count


@contextmanager
def _plain_bytes(commands: Commands, path: str) -> Iterator[IO[bytes]]:
    """The archive without its compression. Raises CkptError (runtime_failed, images_truncated)."""
    compressor = _compressor(path)
    if compressor is None:
        with open(path, "rb") as stream:
            yield stream
        return
    argv = [compressor, "--decompress", "--stdout", path]
    commands.actions.append(argv)
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=system_environment(), bufsize=BLOCK_BYTES
        )
    except OSError as error:
        raise CkptError("runtime_failed", f"{compressor} cannot be run ({error.strerror}); install it.") from error
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, BLOCK_BYTES)
        try:
            yield process.stdout
            # the digest of what was packed comes last
            while process.stdout.read(BLOCK_BYTES):
                pass
        finally:
            process.stdout.close()
        said = process.stderr.read().decode("utf-8", "replace").splitlines()
    if process.returncode:
        raise CkptError(
            "images_truncated", f"the archive {path} is damaged ({' '.join(said)}); take the checkpoint again.", said
        )


def _compressor(path: str) -> str | None:
    return COMPRESSORS[os.path.splitext(path)[1]]


def _store_full(lines: list[str]) -> CkptError:
    return CkptError(
        "store_full",
        "the checkpoint store has no room for the archive; delete old checkpoints, or make it larger.",
        lines,
    )
