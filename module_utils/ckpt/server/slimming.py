# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a server small before its checkpoint, and whole again after the restore.

vLLM's development interface does it (VLLM_SERVER_DEV_MODE=1); the reference server speaks the same one. What a mode asks
for is the server's to say (`sleep` in its specification); the tables below hold for those that say nothing. A server that
says something of the mode `none` has hooks: requests that it gets before every checkpoint, and after every restore.
"""

from __future__ import annotations

from typing import Any

from ..errors import CkptError
from .client import Client

Request = tuple[str, Any]

# `staged` is in neither table: only a server that says how can write its weights to a file of the checkpoint store
RELOAD: Request = ("/collective_rpc", {"method": "reload_weights"})
BEFORE: dict[str, tuple[Request, ...]] = {
    "none": (),
    "sleep1": (("/sleep?level=1", None),),
    "sleep2": (("/sleep?level=2", None),),
    # asleep, then the weights back: what stays away is the KV cache
    "kv-drop": (("/sleep?level=1", None), ("/wake_up?tags=weights", None)),
}
AFTER: dict[str, tuple[Request, ...]] = {
    "none": (),
    "sleep1": (("/wake_up", None),),
    "sleep2": (("/wake_up?tags=weights", None), RELOAD, ("/wake_up?tags=kv_cache", None)),
    "kv-drop": (("/wake_up?tags=kv_cache", None),),
}


def require_known(client: Client, mode: str) -> None:
    """Raises CkptError (bad_input) for a mode that the server does not know: waking it would fail as well."""
    _requests(client, mode, "before", BEFORE)


def slim(client: Client, mode: str) -> None:
    """Makes the server small. Raises CkptError if it refuses."""
    _send(client, _requests(client, mode, "before", BEFORE), "server_unhealthy", "slimming")


def wake(client: Client, mode: str) -> None:
    """Makes the server whole. Raises CkptError (wake_failed) if it refuses."""
    _send(client, _requests(client, mode, "after", AFTER), "wake_failed", "the wake-up")


def wakes(client: Client, mode: str) -> bool:
    """Whether the server is asked for anything after a restore."""
    return bool(_requests(client, mode, "after", AFTER))


def _requests(client: Client, mode: str, when: str, table: dict[str, tuple[Request, ...]]) -> tuple[Request, ...]:
    if mode in client.spec.sleep:
        return tuple((path, body) for path, body in client.spec.sleep[mode][when])
    if mode not in table:
        raise CkptError(
            "bad_input", f"the server {client.spec.name} does not know the slimming `{mode}`; choose another."
        )
    return table[mode]


def _send(client: Client, requests: tuple[Request, ...], reason: str, what: str) -> None:
    for path, body in requests:
        try:
            client.post(path, body)
        except CkptError as error:
            raise CkptError(
                reason,
                " ".join([f"{what} failed: {error.message}", client.spec.engine.slimming_fix]).strip(),
            ) from error
