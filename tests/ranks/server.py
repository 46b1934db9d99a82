# SPDX-License-Identifier: GPL-3.0-or-later
"""Ranks of a server as processes; what they say to one another goes through a thread of the test."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from .wire import receive, send


class Server:
    """As many ranks as asked for, each a process that reads words and answers with a line of JSON."""

    def __init__(self, program: Path, count: int, environment: dict[str, str]) -> None:
        self._ours: list[socket.socket] = []
        self._processes: list[subprocess.Popen[str]] = []
        for rank in range(count):
            ours, theirs = socket.socketpair()
            with theirs:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, str(program), str(rank), str(count), str(theirs.fileno())],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                        pass_fds=[theirs.fileno()],
                        env={**os.environ, **environment},
                    )
                )
            self._ours.append(ours)
        threading.Thread(target=self._hand_on, daemon=True).start()

    def _hand_on(self) -> None:
        """In each round a word of every rank, then all words to each."""
        try:
            while True:
                words = [receive(one) for one in self._ours]
                for one in self._ours:
                    for word in words:
                        send(one, word)
        except OSError:
            pass

    def tell(self, *words: str) -> list[dict[str, Any]]:
        """One word for all ranks, or one for each; returns what they answer, empty for a rank that has ended."""
        for process, word in zip(
            self._processes, words if len(words) > 1 else words * len(self._processes), strict=True
        ):
            assert process.stdin
            process.stdin.write(word + "\n")
            process.stdin.flush()
        return [self._answer(process) for process in self._processes]

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout
        line = process.stdout.readline()
        return dict(json.loads(line)) if line else {}

    def end(self) -> None:
        """Ends all ranks."""
        for process in self._processes:
            process.kill()
            process.communicate()
        for ours in self._ours:
            ours.close()
