# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of wheels that the configured index has, without fetching whole wheels.

A wheel is a ZIP archive, and an index gives parts of a file: only what is looked at travels.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from urllib.parse import urljoin

import httpx
from pip._internal.models.index import PyPI

BLOCK = 1 << 18


def configured_index() -> str:
    """The index that pip takes packages from on this machine: its configuration's, or its own."""
    options = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    chosen = re.search(r"^\S+\.index-url='([^']+)'$", options.stdout, re.M)
    return chosen[1] if chosen else PyPI.simple_url


class Links(HTMLParser):
    """The addresses on a project's page of an index."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


class Remote(io.RawIOBase):
    """A file behind an address, of which only the blocks that are read are fetched."""

    def __init__(self, client: httpx.Client, address: str) -> None:
        self._client, self._address, self._at = client, address, 0
        self._blocks: dict[int, bytes] = {}
        self._size = int(client.head(address).raise_for_status().headers["content-length"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        number, skipped = divmod(self._at, BLOCK)
        piece = self._block(number)[skipped : skipped + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks and number * BLOCK < self._size:
            part = {"Range": f"bytes={number * BLOCK}-{min((number + 1) * BLOCK, self._size) - 1}"}
            answer = self._client.get(self._address, headers=part).raise_for_status()
            assert answer.status_code == httpx.codes.PARTIAL_CONTENT, "the index gives whole files alone"
            self._blocks[number] = answer.content
        return self._blocks.get(number, b"")


def wheel_at_index(name: str, version: str) -> zipfile.ZipFile:
    """The wheel of a release for x86-64. Raises httpx.HTTPError where there is none."""
    client = httpx.Client(timeout=60, follow_redirects=True)
    page = f"{configured_index().rstrip('/')}/{name}/"
    links = Links()
    links.feed(client.get(page).raise_for_status().text)
    file = f"{name.replace('-', '_')}-{version}"
    pattern = re.compile(rf"/{re.escape(file)}-[^/]*manylinux[^/]*x86_64\.whl(#|$)")
    [address, *_] = [urljoin(page, link) for link in links.found if pattern.search(link)]
    return zipfile.ZipFile(io.BufferedReader(Remote(client, address.partition("#")[0]), BLOCK))
