# SPDX-License-Identifier: GPL-3.0-or-later
"""Encryption of what leaves the node, with age: by public keys, and readable where the secret key is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..errors import CkptError
from ..system.commands import Commands, tail
from . import parts
from .remotes import require_private

LIMIT_S = 3600.0
# a public key of age, or of ssh
RECIPIENT = re.compile(r"age1[0-9a-z]{20,200}|ssh-(?:ed25519|rsa) [A-Za-z0-9+/=]{20,2000}(?: [^\n]*)?")
NOT_FOUND = 127


@dataclass(frozen=True)
class Keys:
    """Public keys that copies are encrypted for (none: they are not), and the file with the secret key of this node."""

    recipients: list[str] = field(default_factory=list)
    identity: str | None = None

    def __post_init__(self) -> None:
        """Raises CkptError (bad_input)."""
        require_public("recipient", self.recipients, RECIPIENT, "age (age1…) or ssh; `age-keygen -y FILE` prints it")
        if self.identity is not None:
            require_private(self.identity)

    @property
    def encrypts(self) -> bool:
        """Whether copies are encrypted."""
        return bool(self.recipients)


def require_public(what: str, texts: list[str], pattern: re.Pattern[str], kind: str) -> None:
    """Raises CkptError (bad_input) for what is no public key; it is not repeated, since it may be a secret one."""
    wrong = [str(number + 1) for number, text in enumerate(texts) if not pattern.fullmatch(text)]
    if wrong:
        raise CkptError("bad_input", f"{what} {', '.join(wrong)} is no public key of {kind}.")


@contextmanager
def encrypting(commands: Commands, keys: Keys, out: int) -> Iterator[int]:
    """Within, an open file to be filled; `out` has it afterwards, as it leaves the node.

    Raises CkptError (remote_failed, runtime_failed).
    """
    if not keys.encrypts:
        yield out
        return
    with parts.room_for_part() as content:
        yield content
        recipients = [word for key in keys.recipients for word in ("--recipient", key)]
        _age(commands, ["--encrypt", *recipients], content, out, "encrypted")


@contextmanager
def decrypted(commands: Commands, keys: Keys, content: int) -> Iterator[int]:
    """Within, an open file that came to the node encrypted. Raises CkptError (bad_input, remote_refused, runtime_failed)."""
    if keys.identity is None:
        raise CkptError(
            "bad_input", "the copy is encrypted; name the file of the secret key on this node (copies_age_identity)."
        )
    with parts.room_for_part() as out:
        _age(commands, ["--decrypt", "--identity", keys.identity], content, out, "decrypted")
        yield out


def _age(commands: Commands, options: Sequence[str], content: int, out: int, what: str) -> None:
    os.lseek(content, 0, os.SEEK_SET)
    result = commands.start(["age", *options], LIMIT_S, files=(content, out)).wait()
    parts.ends_here(out)
    if result.rc == NOT_FOUND:
        raise CkptError("runtime_failed", "age is not installed on this node; role copies installs it.")
    if result.rc:
        lines = tail(result.stderr)
        reason = "remote_refused" if "no identity matched" in result.stderr else "remote_failed"
        hint = (
            "it was not encrypted for the secret key of this node"
            if reason == "remote_refused"
            else "see the log lines"
        )
        raise CkptError(reason, f"a copy cannot be {what}; {hint} (age: {lines[0] if lines else result.rc}).", lines)
