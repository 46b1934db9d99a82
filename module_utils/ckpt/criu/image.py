# SPDX-License-Identifier: GPL-3.0-or-later
"""The one reader of CRIU's images, as far as the project needs them.

The grammar, all words of 4 bytes and little-endian:

    image    = head message message*     CRIU creates an image when it writes its first message
    head     = common kind               two magic words; the inventory alone has only its own
    message  = size protobuf             a word that counts the bytes of the protobuf message behind it
    protobuf = field*
    field    = key number                the wire type VARINT
             | key size byte*            the wire type LENGTH_DELIMITED: text, bytes, or another message
    key      = field number << 3 | wire type

`key`, `number` and the `size` of a field are protobuf's variable-length integers. Images whose messages are followed by
raw data (ghost files, queues of sockets) are not read here.

An image that ends between two messages is sound by this grammar. Whoever reads it compares what it says with another
image: a pagemap with its pages, a remap with the files that it names.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from ..parsing import FormatError

WORD_BYTES = 4
VARINT = 0
LENGTH_DELIMITED = 2
# what a 64-bit number takes at most
VARINT_BYTES = 10
# CRIU's own messages are of kilobytes; its largest hold a socket's queue, or the data of a pipe
MESSAGE_BYTES = 64 << 20
COMMON_MAGIC = 0x54564319
SERVICE_MAGIC = 0x55105940

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# flags of a pagemap entry
PE_PARENT = 1
PE_PRESENT = 4
# the type of a remap whose file was given a name again
LINKED = 0

Default = TypeVar("Default")


class ImageError(FormatError):
    """An image that is cut short, or is not what its name says. Its text fits after the name of the image."""


@dataclass(frozen=True)
class Kind:
    """A kind of image: what it is called in a message, and the magic words of its head."""

    name: str
    magic: tuple[int, ...]

    @property
    def head(self) -> bytes:
        """The bytes that such an image begins with."""
        return struct.pack(f"<{len(self.magic)}I", *self.magic)


INVENTORY = Kind("inventory", (0x58313116,))
PAGEMAP = Kind("pagemap", (COMMON_MAGIC, 0x56084025))
FILES = Kind("list of open files", (COMMON_MAGIC, 0x56303138))
REMAPS = Kind("list of deleted files", (COMMON_MAGIC, 0x59133954))
STATS = Kind("stats image", (SERVICE_MAGIC, 0x57093306))


def entries(path: str, kind: Kind) -> Iterator[bytes]:
    """The protobuf messages of an image; none if there is no image, which CRIU leaves out if it has nothing to say.

    Raises ImageError if the image is of another kind, is cut short, or claims a size that no message has.
    """
    try:
        source = open(path, "rb")  # noqa: SIM115  (closed below)
    except FileNotFoundError:
        return
    with source:
        yield from messages(source, kind)


def messages(source: BinaryIO, kind: Kind) -> Iterator[bytes]:
    """The protobuf messages of an open image. Raises ImageError as `entries` does."""
    head = source.read(len(kind.head))
    if head != kind.head:
        # of a head that was cut off, what there is is right
        raise ImageError("is cut short" if kind.head.startswith(head) else f"does not begin as CRIU's {kind.name} does")
    size = _read(source, WORD_BYTES)
    while size:
        length = int.from_bytes(size, "little")
        if length > MESSAGE_BYTES:
            raise ImageError(f"says that a message of it has {length} bytes")
        yield _read(source, length)
        following = source.read(WORD_BYTES)
        size = following + _read(source, WORD_BYTES - len(following)) if following else b""


def _read(source: BinaryIO, size: int) -> bytes:
    """That many bytes. Raises ImageError if there are fewer."""
    data = source.read(size)
    if len(data) < size:
        raise ImageError("is cut short")
    return data


class Message:
    """The fields of a protobuf message by number; of a repeated one, the last."""

    def __init__(self, message: bytes) -> None:
        """Raises ImageError if `message` is not one, or holds another wire type than the two of the grammar."""
        self._fields = dict(fields(message))

    def number(self, field: int) -> int:
        """A number that every such message has. Raises ImageError if it lacks it or holds something else there."""
        value = self.number_or(field, None)
        if value is None:
            raise ImageError(f"lacks the field {field} in a message")
        return value

    def number_or(self, field: int, default: Default) -> int | Default:
        """A number, `default` where there is none. Raises ImageError if something else is there."""
        value = self._fields.get(field)
        if isinstance(value, bytes):
            raise ImageError("holds text where a number belongs")
        return default if value is None else value

    def data(self, field: int) -> bytes | None:
        """Bytes or another message, None where there are none. Raises ImageError if a number is there."""
        value = self._fields.get(field)
        if isinstance(value, int):
            raise ImageError("holds a number where text or a message belongs")
        return value

    def text(self, field: int) -> str:
        """The name of a file, which need not be UTF-8. Raises ImageError if it is missing or a number is there."""
        value = self.data(field)
        if value is None:
            raise ImageError(f"lacks the field {field} in a message")
        return value.decode("utf-8", "surrogateescape")


def fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """(number, value) of each field of a protobuf message, in its order. Raises ImageError if it is not one."""
    found: list[tuple[int, int | bytes]] = []
    position = 0
    while position < len(message):
        key, position = varint(message, position)
        value, position = varint(message, position)
        if key & 7 == VARINT:
            found.append((key >> 3, value))
        elif key & 7 == LENGTH_DELIMITED:
            if position + value > len(message):
                raise ImageError("has a protobuf field that is cut short")
            found.append((key >> 3, message[position : position + value]))
            position += value
        else:
            raise ImageError(f"holds the protobuf wire type {key & 7}, which is not expected here")
    return found


def varint(message: bytes, position: int) -> tuple[int, int]:
    """The variable-length integer at `position`, and the position after it. Raises ImageError if it has no end."""
    value = 0
    for shift, byte in enumerate(message[position : position + VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, position + shift + 1
    raise ImageError("has a protobuf integer that is cut short or too long")


@dataclass(frozen=True)
class PagemapHead:
    """The first message of a pagemap (pagemap_head): the number in the name of its pages image."""

    pages_id: int

    @classmethod
    def of(cls, message: bytes) -> PagemapHead:
        """Raises ImageError if the message is something else."""
        return cls(Message(message).number(1))


@dataclass(frozen=True)
class PagemapEntry:
    """Every other message of a pagemap (pagemap_entry): a run of pages, and where their contents are."""

    address: int
    pages: int
    flags: int | None
    in_parent: bool = False

    @classmethod
    def of(cls, message: bytes) -> PagemapEntry:
        """Raises ImageError if the message is something else."""
        given = Message(message)
        # field 2 counts with 32 bits; a CRIU that knows field 5 writes 0 there
        pages = given.number_or(5, given.number_or(2, 0))
        return cls(given.number(1), pages, given.number_or(4, None), bool(given.number_or(3, 0)))

    @property
    def present_bytes(self) -> int:
        """Bytes that the run takes up in the pages image: none if they lie in the parent or are fetched lazily."""
        if self.flags is None:
            present = not self.in_parent
        else:
            present = bool(self.flags & PE_PRESENT) and not self.flags & PE_PARENT
        return self.pages * PAGE_BYTES if present else 0


@dataclass(frozen=True)
class FileEntry:
    """A regular file that was open (reg_file_entry in file_entry). Its size in bytes is unknown in old images."""

    id: int
    name: str
    size: int | None

    @classmethod
    def of(cls, message: bytes) -> FileEntry | None:
        """None for a file of another type, a socket for one. Raises ImageError if the message is something else."""
        regular = Message(message).data(3)
        if regular is None:
            return None
        given = Message(regular)
        return cls(given.number(1), given.text(6), given.number_or(8, None))


@dataclass(frozen=True)
class RemapEntry:
    """A deleted file (remap_file_path_entry): its id, the id of what CRIU puts in its place, and the type of that."""

    original_id: int
    remap_id: int
    type: int

    @classmethod
    def of(cls, message: bytes) -> RemapEntry:
        """Raises ImageError if the message is something else."""
        given = Message(message)
        return cls(given.number(1), given.number(2), given.number_or(3, LINKED))
