# SPDX-License-Identifier: GPL-3.0-or-later
"""Who has published: the document is signed with a key of ssh, as OpenSSH's own ssh-keygen does it.

What is restored runs as root. Digests tell damage, and a signature tells whose it is.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field

from ..errors import CkptError
from ..system import private
from ..system.commands import Commands, Result, tail
from . import parts, remotes
from .secrecy import NOT_FOUND, require_public

LIMIT_S = 60.0
# a signature for this is one for nothing else
NAMESPACE = "gpuckpt-copies"
# whoever has a key of the list: names would only have to be kept apart from keys
SIGNER = "gpuckpt"
PUBLIC_KEY = re.compile(r"(?:ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]{20,2000}(?: [^\n]*)?")


@dataclass(frozen=True)
class Signing:
    """The file with the secret key of who publishes, and the public keys of those from whom this node fetches (none: anybody)."""

    key: str | None = None
    trusted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises CkptError (bad_input)."""
        kind = "ssh; it is the line in the file that ends with .pub"
        require_public("trusted signer", self.trusted, PUBLIC_KEY, kind)
        if self.key is not None:
            remotes.require_private(self.key)


def sign(commands: Commands, key: str, document: bytes) -> bytes:
    """The signature of a document. Raises CkptError (bad_input, runtime_failed)."""
    with parts.in_memory() as content, parts.in_memory() as out:
        parts.fill(content, document)
        os.lseek(content, 0, os.SEEK_SET)
        words = ["ssh-keygen", "-Y", "sign", "-q", "-n", NAMESPACE, "-f", key]
        result = commands.start(words, LIMIT_S, files=(content, out)).wait()
        _require_installed(result)
        signature = remotes.content_of(out)
        if result.rc or not signature:
            raise CkptError(
                "bad_input",
                f"{key} cannot sign: it must be a secret key of ssh without a passphrase (ssh-keygen -t ed25519 -N '').",
                tail(result.stderr),
            )
        return signature


def require_trusted(commands: Commands, trusted: list[str], document: bytes, signature: bytes, what: str) -> None:
    """Raises CkptError (copy_untrusted) unless one of the trusted keys has signed the document."""
    private.make_folders(remotes.SCRATCH)
    with tempfile.TemporaryDirectory(dir=remotes.SCRATCH) as folder, parts.in_memory() as content:
        signers, signed = os.path.join(folder, "signers"), os.path.join(folder, "signature")
        with open(signers, "w", encoding="utf-8") as out:
            out.writelines(f'{SIGNER} namespaces="{NAMESPACE}" {key}\n' for key in trusted)
        with open(signed, "wb") as raw:
            raw.write(signature)
        parts.fill(content, document)
        os.lseek(content, 0, os.SEEK_SET)
        words = ["ssh-keygen", "-Y", "verify", "-q", "-n", NAMESPACE, "-I", SIGNER, "-f", signers, "-s", signed]
        result = commands.start(words, LIMIT_S, files=(content, None)).wait()
    _require_installed(result)
    if result.rc:
        raise CkptError(
            "copy_untrusted",
            f"{what} was signed by nobody whom this node trusts, or was changed afterwards; nothing was copied. See who has "
            "written it, and publish it again with a key of copies_trusted_signers.",
            tail(result.stderr),
        )


def _require_installed(result: Result) -> None:
    if result.rc == NOT_FOUND:
        raise CkptError("runtime_failed", "ssh-keygen is not installed on this node; install openssh-client.")
