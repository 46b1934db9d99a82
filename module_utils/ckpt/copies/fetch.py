# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetching a golden checkpoint: the document first, which tells whether it fits; then the parts; the commit last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from ..checkpoints import digests, manifest
from ..checkpoints.manifest import Layout, Manifest
from ..errors import CkptError
from ..golden import commit, identity, start, supervisor
from ..golden.commit import Golden
from ..golden.identity import Identity
from ..golden.wanted import Wanted
from ..parsing import FormatError
from ..safety.locks import exclusive
from ..server.spec import parse_server
from ..system import private
from ..system.commands import Commands
from . import marks, parts, portable, publication, secrecy, signatures
from .parts import Piece
from .publication import STAGED, Part, Publication, Version
from .remotes import Remote, content_of, open_remote
from .transfer import Options, Outcome, each, node_id, one_at_a_time

# of a name that nobody gives a checkpoint: what is not finished yet
INCOMING = ".incoming"
# a document of a large checkpoint has some megabytes
DOCUMENT_BYTES = 64 << 20
# a signature has less than a thousand bytes
SIGNATURE_BYTES = 1 << 16
# room that a file system keeps for its own
SPARE_BYTES = 64 << 20
BLOCK_BYTES = 512


def fetch(wanted: Wanted, options: Options, version: str | None = None, check_only: bool = False) -> Outcome:
    """Fetches the newest published checkpoint that fits this node, or one version of it, unless one that fits is here.

    Raises CkptError; what was fetched until then is gone on with by the next call, and what is committed stays.
    """
    remote = open_remote(options.access, wanted.name, Commands())
    with one_at_a_time(wanted.name):
        state = start.examine(wanted)
        if state.golden is not None and not check_only:
            commit.finish(wanted, state.golden)
        if state.golden is not None and not state.misfits and version is None:
            return Outcome(said=f"The golden checkpoint of {wanted.name} that is here fits.")
        chosen, published = _choose(wanted, remote, options, state.now, version)
        outcome = Outcome(chosen.version, because=state.misfits)
        if state.golden is not None and state.golden.instance == published.instance and not state.misfits:
            return outcome
        outcome.changed = True
        if not check_only:
            _announce(remote, options, chosen, outcome)
            _fetch(wanted, remote, options, chosen, published, outcome)
            _commit(wanted, published, state.now)
        why = "; ".join([*state.misfits, *outcome.notes])
        outcome.said = f"{wanted.name}: {chosen.version} was fetched ({outcome.moved >> 20} MiB). {why}"
    return outcome


def incoming_bytes(wanted: Wanted) -> int:
    """What a fetch that was broken off has brought, on the disk."""
    found = (os.path.join(parent, name) for parent, _, names in os.walk(_incoming(wanted)) for name in names)
    return sum(os.lstat(path).st_blocks * BLOCK_BYTES for path in found)


def _choose(
    wanted: Wanted, remote: Remote, options: Options, now: Identity, version: str | None
) -> tuple[Version, Publication]:
    """The newest publication that fits. Raises CkptError (images_missing, checkpoint_unfit) that tells why none does."""
    finished = [
        one for one in publication.versions(remote.objects()) if one.complete and version in (None, one.version)
    ]
    if not finished:
        what = "nothing" if version is None else f"no version {version}"
        raise CkptError(
            "images_missing",
            f"{what} was published at {remote.where}; run publish.yml where there is a golden checkpoint.",
        )
    unfit = []
    for one in finished:
        published = _document(remote, options, one)
        misfits = portable.misfits(published, wanted, now)
        if not misfits:
            return one, published
        unfit.append(f"{one.version} of {published.host}: {'; '.join(misfits)}")
    raise CkptError(
        "checkpoint_unfit",
        f"no published checkpoint of {wanted.name} fits this node, and nothing was copied. {unfit[0]}. "
        "Make one on this node (checkpoint.yml), or make the nodes alike.",
        unfit,
    )


def _document(remote: Remote, options: Options, one: Version) -> Publication:
    with _read(remote, options, one.document, one.encrypted) as content:
        try:
            if os.fstat(content).st_size > DOCUMENT_BYTES:
                raise FormatError(f"is larger than {DOCUMENT_BYTES >> 20} MiB")
            raw = content_of(content)
            _require_trusted(remote, options, one, raw)
            found = publication.parse(raw)
            if found.version != one.version:
                # a document of another publication, put here to pass for a newer one
                raise FormatError(f"is that of {found.version}")
            return found
        except FormatError as error:
            raise CkptError("remote_failed", f"{one.document} at {remote.where} {error}; publish it again.") from error


def _require_trusted(remote: Remote, options: Options, one: Version, document: bytes) -> None:
    """Raises CkptError (copy_untrusted) for a document that nobody has signed whom this node trusts, if it trusts some."""
    if not options.signing.trusted:
        return
    what = f"{one.version} at {remote.where}"
    if not one.signed:
        raise CkptError(
            "copy_untrusted",
            f"{what} is not signed, and this node fetches from copies_trusted_signers only; nothing was copied. "
            "Publish it again with copies_sign_key.",
        )
    with remote.read(f"{one.version}/{publication.SIGNATURE}") as content:
        signature = content_of(content)[:SIGNATURE_BYTES]
    signatures.require_trusted(Commands(), options.signing.trusted, document, signature, what)


@contextmanager
def _read(remote: Remote, options: Options, key: str, encrypted: bool) -> Iterator[int]:
    """Within, an object in memory as it was on the node that published it."""
    with remote.read(key) as content:
        if not encrypted:
            yield content
            return
        with secrecy.decrypted(Commands(), options.keys, content) as plain:
            yield plain


def _announce(remote: Remote, options: Options, chosen: Version, outcome: Outcome) -> None:
    """Says that this node uses the version, and looks whether it is still there."""
    try:
        marks.use(remote, node_id(options.node), options.node, chosen.version)
    except CkptError as error:
        if error.reason == "remote_unreachable":
            raise
        outcome.notes.append(
            f"it cannot be noted there that this node uses {chosen.version}, and so it may be removed: {error.message}"
        )
    if not any(one.version == chosen.version and one.complete for one in publication.versions(remote.objects())):
        raise CkptError("images_missing", f"{chosen.version} was removed at {remote.where} a moment ago; call again.")


def _fetch(
    wanted: Wanted, remote: Remote, options: Options, chosen: Version, published: Publication, outcome: Outcome
) -> None:
    """Brings all parts into the folder of what is not finished yet."""
    folder = _prepare(wanted, published)
    pieces = parts.cut(published.files, published.part_bytes)
    with ExitStack() as stack, ThreadPoolExecutor(1) as disk:
        opened, fresh = {}, set()
        for file in published.files:
            path = _place(wanted, folder, file.path)
            if not os.path.exists(path):
                fresh.add(file.path)
            opened[file.path] = descriptor = _open(path)
            stack.callback(os.close, descriptor)
            os.ftruncate(descriptor, file.bytes)
        _require_room(wanted, folder, published)

        def bring(numbered: tuple[int, Sequence[Piece], Part]) -> None:
            number, pieces, part = numbered
            if not fresh.issuperset(piece.path for piece in pieces) and _is_here(pieces, opened, part):
                return
            key = f"{chosen.version}/{publication.part_name(number, chosen.encrypted)}"
            with _read(remote, options, key, chosen.encrypted) as content:
                # what is damaged is written, too; without the commit nobody uses it, and the next call compares it again
                if os.fstat(content).st_size != part.bytes or parts.scatter(pieces, content, opened) != part.sha256:
                    raise CkptError(
                        "remote_failed",
                        f"{key} is damaged where it was published ({remote.where}); nothing of it is used. Publish it again.",
                    )
                disk.submit(parts.begin_to_write, pieces, opened)
                outcome.moved += part.bytes

        each(bring, zip(range(1, len(pieces) + 1), pieces, published.parts, strict=True), options.threads)
        for file in published.files:
            descriptor = opened[file.path]
            os.fchmod(descriptor, file.mode & 0o777)
            os.fchown(descriptor, file.owner, file.group)
        # the commit must not reach the disk before what it commits
        each(os.fsync, opened.values(), options.threads)


def _prepare(wanted: Wanted, published: Publication) -> str:
    """The folder of what is not finished yet: what another checkpoint left in it is removed."""
    folder = _incoming(wanted)
    mine = os.path.join(folder, published.instance)
    private.make_folder(folder)
    for entry in os.listdir(folder):
        if entry != published.instance:
            shutil.rmtree(os.path.join(folder, entry), ignore_errors=True)
    there = commit.folder_for(wanted, published.instance)
    if not os.path.isdir(mine) and os.path.isdir(there):
        # it was put in place, and not committed: it is looked at again
        os.rename(there, mine)
    for below in ("images", "work/links"):
        private.make_folder(os.path.join(mine, below))
    return mine


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, private.FILE_MODE)


def _place(wanted: Wanted, folder: str, path: str) -> str:
    """Where a file of a publication is written: staged weights next to where they will lie, all else in the folder."""
    if not path.startswith(STAGED):
        return os.path.join(folder, path)
    staging = _staging(wanted)
    return os.path.join(staging, f".{path.removeprefix(STAGED)}.incoming")


def _staging(wanted: Wanted) -> str:
    folder = parse_server(wanted.server, wanted.runtime).staging_dir
    if not folder:
        raise CkptError(
            "bad_input", f"the checkpoint has staged weights, and the server {wanted.name} has no staging_dir."
        )
    private.make_folder(folder)
    return folder


def _is_here(pieces: Sequence[Piece], opened: dict[str, int], part: Part) -> bool:
    """Whether an earlier call has brought this part."""
    return parts.digest_of_pieces(pieces, opened) == part.sha256


def _require_room(wanted: Wanted, folder: str, published: Publication) -> None:
    """Raises CkptError (store_full) before anything large is moved."""
    needed: dict[str, int] = {}
    for file in published.files:
        path = _place(wanted, folder, file.path)
        there = os.stat(path).st_blocks * BLOCK_BYTES
        data = sum(length for _, length in file.data)
        parent = os.path.dirname(path) if file.path.startswith(STAGED) else folder
        needed[parent] = needed.get(parent, 0) + max(0, data - there)
    for parent, size in needed.items():
        sizes = os.statvfs(parent)
        free = sizes.f_bavail * sizes.f_frsize
        if free < size + SPARE_BYTES:
            raise CkptError(
                "store_full",
                f"{parent} has {free >> 20} MiB left, and {size >> 20} MiB more of the checkpoint are to be fetched; "
                "delete what is not needed there, or name another folder (serve_folder).",
            )


def _commit(wanted: Wanted, published: Publication, now: Identity) -> None:
    """Puts what was fetched in place of what was there. Raises CkptError, and then what was there stays."""
    mine = os.path.join(_incoming(wanted), published.instance)
    proof = _require_sound(wanted, mine, published)
    if identity.of(wanted) != now:
        raise CkptError(
            "checkpoint_unfit", f"the node or the server {wanted.name} changed during the fetch; call again."
        )
    if supervisor.status(wanted.name) is not None:
        raise CkptError(
            "server_running",
            f"{published.version} is here, whole, and is not used yet: {wanted.name} is being served. Stop it "
            f"(systemctl stop gpuckpt-serve@{wanted.name}, or serve.yml with serve_state=stopped), and call again.",
        )
    replaced = commit.noted(wanted)
    place = commit.folder_for(wanted, published.instance)
    with exclusive("ckpt_fetch", checkpoint=place):
        for path in proof.staged:
            incoming = _place(wanted, mine, STAGED + os.path.basename(path))
            if os.path.exists(incoming):
                os.rename(incoming, path)
        shutil.rmtree(place, ignore_errors=True)
        os.rename(mine, place)
    log = proof.instance.get("log")
    if isinstance(log, dict) and isinstance(log.get("path"), str):
        # it was made when the server was started, which was elsewhere
        private.make_folders(os.path.dirname(log["path"]))
    golden = Golden(
        name=wanted.name,
        instance=published.instance,
        folder=place,
        identity=now,
        made_at=published.made_at,
        first_token_s=published.first_token_s,
        bytes=published.bytes,
        cold_s=published.cold_s,
        made_s=published.made_s,
    )
    commit.save(wanted, golden)
    if replaced is not None and replaced.instance != golden.instance:
        start.discard(wanted, replaced.instance)


def _require_sound(wanted: Wanted, folder: str, published: Publication) -> Manifest:
    """What was fetched is a checkpoint of this server. Raises CkptError."""
    layout = Layout(folder, wanted.source)
    proof = manifest.load(layout)
    digests.require_intact(layout, proof, wanted.verify)
    staging = parse_server(wanted.server, wanted.runtime).staging_dir
    names = {file.path.removeprefix(STAGED) for file in published.files if file.path.startswith(STAGED)}
    if names != {os.path.basename(path) for path in proof.staged} or any(
        os.path.dirname(path) != staging for path in proof.staged
    ):
        raise CkptError(
            "bad_input", "the staged weights that the checkpoint names are not those that were published with it."
        )
    if (proof.runtime, proof.source) != (wanted.runtime, wanted.source):
        raise CkptError(
            "checkpoint_unfit", "the checkpoint was taken with another runtime or source than its identity says."
        )
    return proof


def _incoming(wanted: Wanted) -> str:
    return os.path.join(commit.home(wanted), INCOMING)
