# SPDX-License-Identifier: GPL-3.0-or-later
"""Publishing a golden checkpoint: its parts first, and the document that commits it last."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from ..checkpoints import digests, manifest
from ..checkpoints.manifest import Layout, Manifest
from ..errors import CkptError
from ..golden import start
from ..golden.commit import Golden
from ..golden.wanted import Wanted
from ..parsing import FormatError, build
from ..system import private
from ..system.commands import Commands
from ..system.files import read_json, remove, write_json
from ..vocabulary import RUNTIME_TRAITS
from . import keep, marks, parts, portable, publication, secrecy, signatures
from .parts import File, Piece
from .publication import Part, Publication, Version
from .remotes import Remote, open_remote
from .transfer import Options, Outcome, each, node_id, one_at_a_time

JOURNALS = "/var/lib/gpuckpt/copies"
_NOTING = threading.Lock()


@dataclass
class Journal:
    """What of a publication is at the remote already: sizes of its objects by name, as they were when they were written."""

    version: str
    instance: str
    where: str
    part_bytes: int
    recipients: str
    objects: dict[str, int] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)


def publish(wanted: Wanted, options: Options, check_only: bool = False) -> Outcome:
    """Publishes the golden checkpoint of a server, unless it is there already, and removes what is beyond those to be kept.

    Raises CkptError; what was copied until then is gone on with by the next call.
    """
    remote = open_remote(options.access, wanted.name, Commands())
    with one_at_a_time(wanted.name):
        golden = _golden(wanted)
        me = node_id(options.node)
        found = publication.versions(remote.objects())
        there = _published(found, golden, options)
        outcome = Outcome(there.version if there else None)
        if check_only:
            outcome.changed = there is None
            return outcome
        if there is None:
            _publish(wanted, golden, remote, options, found, me, outcome)
            marks.use(remote, me, options.node, str(outcome.version))
        _collect(remote, options, me, outcome)
    removed = f", and {', '.join(outcome.removed)} removed" if outcome.removed else ""
    outcome.said = f"{wanted.name} is published as {outcome.version}; {outcome.moved >> 20} MiB were sent{removed}."
    return outcome


def listed(name: str, options: Options) -> Outcome:
    """Asks the remote what is published under a name. Raises CkptError."""
    remote = open_remote(options.access, name, Commands())
    found = [one.version for one in publication.versions(remote.objects()) if one.complete]
    said = f"{remote.where} has {', '.join(found) or 'no publication'}."
    return Outcome(found[0] if found else None, published=found, said=said)


def forget(name: str, options: Options, published: bool = False, check_only: bool = False) -> Outcome:
    """Gives up what this node has of a name at the remote; with `published` the publications, too, but for what others use."""
    remote = open_remote(options.access, name, Commands())
    outcome = Outcome()
    with one_at_a_time(name):
        listing = remote.objects()
        mark = marks.key_of(node_id(options.node))
        used = marks.used(remote, listing, but=mark) if published else {}
        versions = publication.versions(listing) if published else []
        outcome.notes = [
            f"{one.version} is used by {', '.join(used[one.version])}" for one in versions if one.version in used
        ]
        removed = [one for one in versions if one.version not in used]
        outcome.changed = bool(removed) or mark in listing
        outcome.removed = [one.version for one in removed]
        if not check_only:
            remote.remove([mark] if mark in listing else [])
            for one in removed:
                _remove(remote, one)
            remove(journal_path(name))
    outcome.said = "; ".join(outcome.notes) and f"Not removed: {'; '.join(outcome.notes)}."
    return outcome


def _golden(wanted: Wanted) -> Golden:
    """What is to be published. Raises CkptError (images_missing, bad_input)."""
    state = start.examine(wanted)
    if state.golden is None or state.misfits:
        raise CkptError(
            "images_missing",
            f"{wanted.name} has no golden checkpoint that fits this node ({'; '.join(state.misfits)}); run checkpoint.yml first.",
        )
    if RUNTIME_TRAITS[wanted.runtime].uses_up_server and wanted.source == "disk":
        raise CkptError(
            "bad_input",
            f"a golden checkpoint of runtime {wanted.runtime} is restored into the very container that it was taken of, and "
            "other nodes have none; set serve_source: tar, and run checkpoint.yml again.",
        )
    return state.golden


def _published(found: Sequence[Version], golden: Golden, options: Options) -> Version | None:
    """Where this very checkpoint was published as it is asked for, by whichever node."""
    mark = publication.instance_mark(golden.instance)
    same = (
        one
        for one in found
        if one.complete
        and one.instance_mark == mark
        and one.encrypted == options.keys.encrypts
        and (one.signed or not options.signing.key)
    )
    return next(same, None)


def _publish(
    wanted: Wanted,
    golden: Golden,
    remote: Remote,
    options: Options,
    found: Sequence[Version],
    me: str,
    outcome: Outcome,
) -> None:
    layout = Layout(golden.folder, wanted.source)
    proof = manifest.load(layout)
    digests.require_intact(layout, proof, wanted.verify)
    with _opened(_files(layout, proof)) as opened:
        files = [_describe(path, descriptor) for path, descriptor in opened.items()]
        journal = _journal(wanted.name, golden, remote, options, found, me)
        outcome.version, outcome.changed = journal.version, True
        marks.begin(remote, journal.version, me)
        pieces = parts.cut(files, options.part_bytes)
        sender = _Sender(remote, options, journal, wanted.name, opened)
        try:
            each(sender.send, list(enumerate(pieces, 1)), options.threads)
            # another node may have taken them for those of a publication that nobody finishes
            sender.require_all_there(len(pieces))
        finally:
            outcome.moved = sender.moved
        published = Publication(
            name=wanted.name,
            instance=golden.instance,
            version=journal.version,
            node=me,
            host=options.node or socket.gethostname(),
            made_at=golden.made_at,
            first_token_s=golden.first_token_s,
            bytes=golden.bytes,
            source=proof.source,
            identity=golden.identity,
            part_bytes=options.part_bytes,
            contents=portable.contents(golden.identity),
            server=portable.server_keys(wanted),
            files=files,
            cold_s=golden.cold_s,
            made_s=golden.made_s,
            parts=[journal.parts[str(number)] for number in range(1, len(pieces) + 1)],
        )
        sender.commit(published)
    remove(journal_path(wanted.name))


class _Sender:
    """Sends parts, and remembers on the node what was sent."""

    def __init__(
        self, remote: Remote, options: Options, journal: Journal, name: str, opened: Mapping[str, int]
    ) -> None:
        self._remote, self._options, self._journal, self._name, self._opened = (
            remote,
            options,
            journal,
            name,
            dict(opened),
        )
        self._there = {key: size for key, size in remote.objects().items() if key.startswith(f"{journal.version}/")}
        self.moved = 0

    def send(self, numbered: tuple[int, Sequence[Piece]]) -> None:
        """Sends one part, unless it is there. Raises CkptError."""
        number, pieces = numbered
        name = publication.part_name(number, self._options.keys.encrypts)
        if self._is_there(name) and str(number) in self._journal.parts:
            return
        with self._remote.written(f"{self._journal.version}/{name}") as out:
            with secrecy.encrypting(self._commands, self._options.keys, out) as content:
                digest = parts.gather(pieces, self._opened, content)
            part, size = Part(sum(piece.bytes for piece in pieces), digest), os.fstat(out).st_size
        # one thread at a time changes a dictionary, and a part is one entry
        self._journal.parts[str(number)], self._journal.objects[name] = part, size
        self.moved += size
        self._note()

    def require_all_there(self, count: int) -> None:
        """Raises CkptError (remote_failed) if a part that was sent is not there, or not whole."""
        self._there = {
            key: size for key, size in self._remote.objects().items() if key.startswith(f"{self._journal.version}/")
        }
        names = (publication.part_name(number, self._options.keys.encrypts) for number in range(1, count + 1))
        missing = [name for name in names if not self._is_there(name)]
        if missing:
            for name in missing:
                self._journal.objects.pop(name, None)
            self._note()
            raise CkptError(
                "remote_failed",
                f"{missing[0]} of {self._journal.version} was written, and is not whole at {self._remote.where}; call again.",
            )

    def commit(self, published: Publication) -> None:
        """Writes the document: from now on others fetch it."""
        suffix = publication.ENCRYPTED if self._options.keys.encrypts else ""
        document = f"{published.version}/{publication.DOCUMENT}{suffix}"
        # the document must not outlive what it commits
        self._remote.settle(self._there)
        content_bytes = json.dumps(published.document()).encode()
        if self._options.signing.key:
            signature = f"{published.version}/{publication.SIGNATURE}"
            with self._remote.written(signature) as out:
                parts.fill(out, signatures.sign(self._commands, self._options.signing.key, content_bytes))
            self._remote.settle([signature])
        with (
            self._remote.written(document) as out,
            secrecy.encrypting(self._commands, self._options.keys, out) as content,
        ):
            parts.fill(content, content_bytes)
        self._remote.settle([document])

    @property
    def _commands(self) -> Commands:
        return Commands()

    def _is_there(self, name: str) -> bool:
        key, size = f"{self._journal.version}/{name}", self._journal.objects.get(name)
        return size is not None and key in self._there and self._there[key] in (None, size)

    def _note(self) -> None:
        # threads come here at once; each writes all that is known, to a file of its own first
        private.make_folder(JOURNALS)
        with _NOTING:
            write_json(journal_path(self._name), asdict(self._journal))


def _journal(name: str, golden: Golden, remote: Remote, options: Options, found: Sequence[Version], me: str) -> Journal:
    """What of this publication was done already, or a new one."""
    recipients = hashlib.sha256("\n".join(sorted(options.keys.recipients)).encode()).hexdigest()[:16]
    with suppress(FormatError):
        raw = read_json(journal_path(name))
        if raw is not None:
            noted = build(Journal, raw)
            same = (golden.instance, remote.where, options.part_bytes, recipients)
            if same == (noted.instance, noted.where, noted.part_bytes, noted.recipients):
                return noted
    sequence = max((one.sequence for one in found), default=0) + 1
    version = publication.version_name(sequence, golden.instance, me)
    return Journal(version, golden.instance, remote.where, options.part_bytes, recipients)


def journal_path(name: str) -> str:
    """Where a node notes what it has sent of a publication that is not finished."""
    return f"{JOURNALS}/{name}.json"


def _files(layout: Layout, proof: Manifest) -> dict[str, str]:
    """The files that a restore needs: name in the publication → path on this node."""
    names = {name: os.path.join(layout.folder, name) for name in [*digests.covered(layout), manifest.NAME]}
    staged = {publication.STAGED + os.path.basename(path): path for path in proof.staged}
    return {**names, **staged}


@contextmanager
def _opened(paths: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """Within, all files are open: whoever makes the checkpoint anew meanwhile takes nothing away. Raises CkptError."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    opened: dict[str, int] = {}
    try:
        for name, path in sorted(paths.items()):
            try:
                opened[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError as error:
                raise CkptError(
                    "images_missing", f"{path} cannot be read ({error.strerror}); run checkpoint.yml again."
                ) from error
        yield opened
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def _describe(path: str, descriptor: int) -> File:
    status = os.fstat(descriptor)
    data = parts.data_of(descriptor, status.st_size)
    return File(path, status.st_size, data, status.st_mode & 0o777, status.st_uid, status.st_gid)


def _collect(remote: Remote, options: Options, me: str, outcome: Outcome) -> None:
    """Removes old publications, and those that nobody will finish."""
    listing = remote.objects()
    found = publication.versions(listing)
    begun = {
        one.version: when for one in found if not one.complete and one.node != me and (when := marks.begun(remote, one))
    }
    used = marks.used(remote, listing)
    for one in keep.surplus(found, options.keep, used):
        if _remove(remote, one):
            outcome.removed.append(one.version)
    for one in keep.abandoned(found, me, None, begun, datetime.now(UTC)):
        _remove(remote, one)
        outcome.removed.append(one.version)
    outcome.changed |= bool(outcome.removed)


def _remove(remote: Remote, one: Version) -> bool:
    """Removes a publication: its document first, so that nobody begins to fetch it. False if a node has begun meanwhile."""
    if one.complete:
        with parts.in_memory() as content:
            remote.get(one.document, content)
            remote.remove([one.document])
            if one.version in marks.used(remote, remote.objects()):
                remote.put(one.document, content)
                return False
    remote.remove_folder(one.version, [name for name in sorted(one.objects) if f"{one.version}/{name}" != one.document])
    return True
