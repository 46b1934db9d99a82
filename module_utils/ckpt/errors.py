# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures with a cause, a mend and a reason from a closed list."""

from __future__ import annotations

REASONS = (
    "criu_missing",
    "criu_too_old",
    "criu_failed",
    "runtime_failed",
    "server_unhealthy",
    "server_died",
    "port_taken",
    "io_uring",
    "tcp_connection",
    "store_full",
    "images_truncated",
    "images_missing",
    "canary_differs",
    "counter_lost",
    "pids_missing",
    "cuda_not_running",
    "gpu_bytes_missing",
    "wake_failed",
    "gpu_memory_short",
    "model_missing",
    "timeout",
    "node_taken",
    "bad_input",
    "internal",
)


class CkptError(Exception):
    """A failure a user can act on.

    :param reason: one of REASONS.
    :param message: one sentence or two that name the cause and the mend.
    :param log_lines: the lines of a log that show the cause.
    """

    def __init__(self, reason: str, message: str, log_lines: list[str] | None = None) -> None:
        if reason not in REASONS:
            raise ValueError(f"{reason} is not one of the reasons")
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.log_lines = log_lines or []
