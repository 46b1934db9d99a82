# SPDX-License-Identifier: GPL-3.0-or-later
"""A value that a thread works out in the background, or at once when somebody needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Later(Generic[T]):
    """The value of `make`, which begins after a delay, or when `get` is called."""

    def __init__(self, make: Callable[[], T], delay_s: float) -> None:
        self._wanted = threading.Event()
        self._value: Future[T] = Future()
        threading.Thread(target=self._work, args=(make, delay_s), name="gpuckpt-later", daemon=True).start()

    def _work(self, make: Callable[[], T], delay_s: float) -> None:
        self._wanted.wait(delay_s)
        try:
            self._value.set_result(make())
        except BaseException as error:
            self._value.set_exception(error)

    def get(self, limit_s: float) -> T:
        """The value. Raises TimeoutError after a time limit, and whatever `make` raised."""
        self._wanted.set()
        return self._value.result(limit_s)


class Ready(Generic[T]):
    """A value that there is already, in the place of one that comes later."""

    def __init__(self, value: T) -> None:
        self._value = value

    def get(self, limit_s: float) -> T:
        """The value; `limit_s` is nothing to it."""
        return self._value
