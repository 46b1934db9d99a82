# SPDX-License-Identifier: GPL-3.0-or-later
"""The words of a measurement and the rules that combine them: the one place where either is written.

Modules import this file. The report package imports it, too, through a symbolic link in reports/gpuckpt_report/records.
So it needs the standard library alone, and nothing newer than Python 3.9. Each list of words is a type, and the tuple of
its words is made from that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

# what holds the server's processes; runtimes/ has one file for each, RUNTIME_TRAITS below a row
Runtime = Literal["podman", "process"]
# builds of CRIU on a node; `current` is a link to one of them
Build = Literal["stock", "patched", "distro", "current"]
# how small the server is made before its checkpoint
Slimming = Literal["none", "sleep1", "sleep2", "kv-drop", "staged"]
# where a checkpoint's images lie: in place, or in one file
Archive = Literal["tar", "tar.gz", "tar.zst"]
Source = Literal["store", "disk", Archive]
# the images' pages in the page cache before a restore
PageCacheState = Literal["warm", "dropped"]
# which digests of a checkpoint's files are taken and compared
Level = Literal["metadata", "pages"]
# how a server comes up, and what else there are records of
Start = Literal["cold", "restore"]
Kind = Literal[Start, "checkpoint", "probe", "floor"]
# moments of a measurement after T0, and those that a lane can be judged by
Moment = Literal["T1", "T2", "T3", "T4", "T5"]
Metric = Literal["T4", "T1"]
# why a measurement failed; docs/failures.md tells what each means and what to do about it
Reason = Literal[
    "criu_missing",
    "criu_too_old",
    "criu_failed",
    "runtime_failed",
    "server_unhealthy",
    "server_died",
    "port_taken",
    "pid_taken",
    "server_running",
    "io_uring",
    "tcp_connection",
    "not_restorable",
    "store_full",
    "file_unusable",
    "images_truncated",
    "images_missing",
    "images_damaged",
    "canary_differs",
    "memory_damaged",
    "counter_lost",
    "pids_missing",
    "cuda_not_running",
    "gpu_bytes_missing",
    "checkpoint_unfit",
    "copy_untrusted",
    "remote_unreachable",
    "remote_refused",
    "remote_failed",
    "wake_failed",
    "gpu_memory_short",
    "model_missing",
    "timeout",
    "node_taken",
    "bad_input",
    "internal",
]

RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
BUILDS: tuple[Build, ...] = get_args(Build)
SLIMMINGS: tuple[Slimming, ...] = get_args(Slimming)
ARCHIVES: tuple[Archive, ...] = get_args(Archive)
SOURCES: tuple[Source, ...] = get_args(Source)
PAGE_CACHE_STATES: tuple[PageCacheState, ...] = get_args(PageCacheState)
# how a golden checkpoint lies: images in place, or one archive
GOLDEN_SOURCES: tuple[Source, ...] = ("disk", "tar")
LEVELS: tuple[Level, ...] = get_args(Level)
MEASURED_KINDS: tuple[Start, ...] = get_args(Start)
MOMENTS: tuple[Moment, ...] = get_args(Moment)
METRICS: tuple[Metric, ...] = get_args(Metric)
REASONS: tuple[Reason, ...] = get_args(Reason)

# regular expressions, for the whole of a name
LANE_NAME = r"[a-z0-9]+(-[a-z0-9]+)*"
LANE_NAME_LENGTH = 64
SWITCH_NAME = r"CRIU_[A-Z0-9_]+"


@dataclass(frozen=True)
class RuntimeTraits:
    """What runtimes differ in, for those who never call one: a server's description, the plan of a benchmark, the checks.

    :param in_container: an OCI runtime makes the server in namespaces of its own, and hands CRIU the options for it. So the
        server needs a root, and has its environment line by line.
    :param uses_up_server: a checkpoint in place is restored into the very container that it was taken of, so no other
        checkpoint can be.
    :param reads_archives: its own commands write and read an archive. Otherwise it is packed and unpacked next to the images.
    :param keeping_flags: options of a restore without which it would use up the checkpoint.
    """

    in_container: bool = False
    uses_up_server: bool = False
    reads_archives: bool = False
    keeping_flags: tuple[str, ...] = ()


RUNTIME_TRAITS: dict[str, RuntimeTraits] = {
    "podman": RuntimeTraits(in_container=True, uses_up_server=True, reads_archives=True, keeping_flags=("--keep",)),
    "process": RuntimeTraits(),
}


@dataclass(frozen=True)
class Rule:
    """What one choice in a lane asks of its other keys.

    :param when: key and value of the lanes that it is for.
    :param message: what is wrong with a lane that breaks it; ``{wrong}`` stands for the keys that do not fit.
    :param needs: key and value that such a lane must have.
    :param only: the keys that mean something in such a lane; empty if all of them do.
    """

    when: tuple[str, Any]
    message: str
    needs: tuple[tuple[str, Any], ...] = ()
    only: tuple[str, ...] = ()

    def wrong_keys(self, lane: Mapping[str, Any]) -> list[str]:
        """The keys of a lane that do not fit; none in a lane that the rule is not for."""
        key, value = self.when
        if lane.get(key) != value:
            return []
        missed = [name for name, needed in self.needs if lane.get(name) != needed]
        return missed + [name for name in lane if self.only and name not in self.only]


# keys of a lane that are options of ckpt_restore under the same name
RESTORE_KEYS = ("flags", "slimming", "page_cache", "resident_pool", "prefetch")

RULES = (
    Rule(
        when=("start", "cold"),
        # it restores nothing, so the others would be silently without effect
        only=("name", "start", "runtime", "server", "iterations", "baseline", "description"),
        message="a cold start has no use for {wrong}",
    ),
    Rule(
        when=("page_cache", "dropped"),
        needs=(("source", "disk"),),
        message="page_cache: dropped needs source: disk, since a tmpfs has no page cache to drop",
    ),
    Rule(
        when=("resident_pool", True),
        needs=(("build", "patched"),),
        message="resident_pool: true needs build: patched, since the other builds are measured as they are",
    ),
    Rule(
        when=("prefetch", True),
        needs=(("slimming", "staged"),),
        message="prefetch: true needs slimming: staged, whose weights lie in a file of their own",
    ),
)


def lane_problems(lane: Mapping[str, Any]) -> list[str]:
    """What in a lane does not go together, a message for each rule that it breaks.

    :param lane: the keys that were chosen; one that has its default may be left out.
    """
    found = ((rule, rule.wrong_keys(lane)) for rule in RULES)
    return [rule.message.format(wrong=", ".join(wrong)) for rule, wrong in found if wrong]


def set_problems(lanes: Iterable[tuple[str, bool]]) -> list[str]:
    """What no single lane shows: names that are used twice, several baselines.

    :param lanes: name of each lane, and whether it is the baseline.
    """
    lanes = list(lanes)
    names = [name for name, _ in lanes]
    problems = [f"lane {name!r} is named twice" for name in sorted({name for name in names if names.count(name) > 1})]
    baselines = [name for name, baseline in lanes if baseline]
    if len(baselines) > 1:
        problems.append(f"only one lane can be the baseline, not {', '.join(baselines)}")
    return problems
