# SPDX-License-Identifier: GPL-3.0-or-later
"""Change detection between two sides, lane by lane: a gate for CI.

A machine that runs the same code twice, minutes apart, differs from itself by more than its samples within a run tell.
So two runs alone say nothing. There are three ways to know more. Several runs of each side have a spread between runs,
which is the yardstick. A control lane that did not change is measured in both runs. Or both builds are lanes of one run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree

from gpuckpt_report.analysis import noise, stats
from gpuckpt_report.analysis.run import HostAnalysis, LaneResult, RunAnalysis, speedup
from gpuckpt_report.errors import ReportError
from gpuckpt_report.records.schema import Lane, RunManifest
from gpuckpt_report.text.table import Table
from gpuckpt_report.text.units import seconds

SLOWER, FASTER, SAME = "slower", "faster", "no change"
BROKEN, GONE, GONE_ALLOWED, NEW = "fails now", "gone", "gone, allowed", "new"
REDEFINED, CONTROL, UNCLEAR = "redefined", "control", "cannot tell"
ALARMS = (SLOWER, BROKEN, GONE)
UNDECIDED = (UNCLEAR, REDEFINED)
# Changes below this share are not worth a name, however sure they are.
LEAST_CHANGE = 0.05
# A gate that could not have found so much has not shown that nothing changed.
EFFECT_TO_FIND = noise.EFFECT
RUNS_A_SIDE = 3
ALLOWABLE = ("gpu", "machine", "server", "weights", "lanes", "gone")
HOW_TO_TELL = (
    f"measure each side at least {RUNS_A_SIDE} times (runs joined by commas), or name a lane that did not change "
    "(--control), or measure both builds as lanes of one run (--rerun OLD=NEW)"
)


@dataclass(frozen=True)
class Change:
    """One lane on both sides: medians in seconds, and how many times longer it takes on the second."""

    host: str
    lane: str
    verdict: str
    before: float | None = None
    after: float | None = None
    estimate: stats.LogEstimate | None = None
    comparisons: int = 1
    why: str = ""

    @property
    def interval(self) -> stats.Interval | None:
        """The interval of after/before; intervals of all lanes hold together."""
        return None if self.estimate is None else self.estimate.interval(self.comparisons)

    @property
    def could_find(self) -> float | None:
        """The smallest change, as a share, that nine of ten such comparisons would have found."""
        return None if self.estimate is None else self.estimate.could_find(self.comparisons)

    def document(self) -> dict[str, Any]:
        """The change as JSON holds it; times in seconds, ratios after/before."""
        interval = self.interval
        return {
            "host": self.host,
            "lane": self.lane,
            "verdict": self.verdict,
            "why": self.why or None,
            "before_s": self.before,
            "after_s": self.after,
            "ratio": None if self.estimate is None else math.exp(self.estimate.value),
            "interval": None if interval is None else [interval.low, interval.high],
            "could_find": self.could_find,
        }


@dataclass(frozen=True)
class Comparison:
    """All lanes, and what else differs between the sides, in words."""

    changes: list[Change]
    differences: list[str]

    @property
    def alarms(self) -> list[Change]:
        """Lanes that became slower, fail now or are gone."""
        return [change for change in self.changes if change.verdict in ALARMS]

    @property
    def undecided(self) -> list[Change]:
        """Lanes of which nothing can be said."""
        return [change for change in self.changes if change.verdict in UNDECIDED]


def compare(
    before: Sequence[RunAnalysis],
    after: Sequence[RunAnalysis],
    control: str | None = None,
    allowed: Sequence[str] = (),
) -> Comparison:
    """Compares the lanes of two sides, host by host; sides of one host each are compared whatever its name.

    :param before: runs of the old side
    :param after: runs of the new side
    :param control: a lane that did not change between the sides
    :param allowed: of ``ALLOWABLE``, what may differ
    :raises ReportError: if the sides measure different things or share no host
    """
    runs = [*before, *after]
    for run in runs:
        if run.manifest.metric != runs[0].manifest.metric:
            raise ReportError(
                f"{runs[0].manifest.run_id} measures {runs[0].metric_name}, {run.manifest.run_id} {run.metric_name}: "
                "they cannot be compared"
            )
    changes: list[Change] = []
    differences: list[str] = []
    starts = [[run.manifest.started_at for run in side] for side in (before, after)]
    if control is None and (max(starts[0]) < min(starts[1]) or max(starts[1]) < min(starts[0])):
        differences.append(
            "time: one side was measured as a whole before the other, so that drift of the machine looks like a change; "
            "measure the sides in turn"
        )
    for pair in _host_pairs(before, after):
        found = _differences(pair, allowed)
        differences += [text for text in found if text not in differences]
        changes += _host_changes(pair, control, allowed)
    if not changes:
        raise ReportError("the runs have no host in common: compare runs of the same machine")
    return Comparison(changes, differences)


def compare_within(run: RunAnalysis, pairs: Sequence[tuple[str, str]]) -> Comparison:
    """Compares lanes of one run, measured in the same rounds: the old build against the new one.

    :param pairs: (old lane, new lane)
    :raises ReportError: if the run has no such lane
    """
    changes = []
    for host in run.hosts:
        lanes = {lane.name: lane for lane in host.lanes}
        for names in pairs:
            missing = [name for name in names if name not in lanes]
            if missing:
                raise ReportError(
                    f"run {run.manifest.run_id} has no lane {missing[0]!r} on {host.host}: {', '.join(lanes)}"
                )
        for old, new in ((lanes[old], lanes[new]) for old, new in pairs):
            why = f"needs {stats.LEAST_SAMPLES} good samples of both lanes"
            change = Change(
                host.host, new.name, "", old.median, new.median, _estimate_within(old, new), len(pairs), why
            )
            changes.append(_judged(change, [old], [new]))
    return Comparison(changes, [])


def table(comparison: Comparison) -> Table:
    """The changes as a table."""
    hosts = {change.host for change in comparison.changes}
    headings = ["lane", "before s", "after s", "after/before", "interval", "finds", "verdict"]
    if len(hosts) > 1:
        headings.insert(1, "host")
    return Table(headings, [_row(change, len(hosts) > 1) for change in comparison.changes])


def sentences(comparison: Comparison) -> list[str]:
    """What the table does not say: differences, reasons, and what could have been found."""
    lines = [f"differs: {text}" for text in comparison.differences]
    reasons = dict.fromkeys(change.why for change in comparison.changes if change.why)
    lines += [f"{', '.join(c.lane for c in comparison.changes if c.why == why)}: {why}" for why in reasons]
    found = [change.could_find for change in comparison.changes if change.could_find is not None]
    if found:
        lines.append(f"A change of {max(found):.0%} would have been found in every lane compared (9 times of 10).")
    return lines


def document(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON."""
    return {
        "changes": [change.document() for change in comparison.changes],
        "differences": comparison.differences,
        "alarms": len(comparison.alarms),
        "undecided": len(comparison.undecided),
    }


def junit(comparison: Comparison) -> str:
    """The comparison as a JUnit file: a lane is a test, an alarm its failure, one that cannot be told is skipped."""
    skipped = [change for change in comparison.changes if change.verdict in (*UNDECIDED, NEW)]
    counts = {"tests": len(comparison.changes), "failures": len(comparison.alarms), "skipped": len(skipped)}
    suite = ElementTree.Element("testsuite", {"name": "gpuckpt compare"} | {key: str(n) for key, n in counts.items()})
    for change in comparison.changes:
        case = ElementTree.SubElement(suite, "testcase", classname=change.host, name=change.lane)
        text = json.dumps(change.document(), ensure_ascii=False)
        if change in comparison.alarms:
            ElementTree.SubElement(case, "failure", message=change.verdict).text = text
        elif change in skipped:
            ElementTree.SubElement(case, "skipped", message=change.why or change.verdict)
        ElementTree.SubElement(case, "system-out").text = text
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _row(change: Change, with_host: bool) -> list[str]:
    ratio = interval = finds = "–"
    if change.estimate is not None and change.interval is not None and change.could_find is not None:
        ratio = f"{math.exp(change.estimate.value):.2f}"
        interval = f"{change.interval.low:.2f} … {change.interval.high:.2f}"
        finds = f"{change.could_find:.0%}"
    host = [change.host] if with_host else []
    return [change.lane, *host, seconds(change.before), seconds(change.after), ratio, interval, finds, change.verdict]


@dataclass(frozen=True)
class _Side:
    """One host in the runs of one side."""

    manifests: list[RunManifest]
    hosts: list[HostAnalysis]

    def lanes(self, name: str) -> list[LaneResult]:
        return [lane for host in self.hosts for lane in host.lanes if lane.name == name]

    def defined(self, name: str) -> Lane | None:
        return next((lane for manifest in self.manifests if (lane := manifest.lane(name)) is not None), None)


Pair = tuple[_Side, _Side]


def _host_pairs(before: Sequence[RunAnalysis], after: Sequence[RunAnalysis]) -> list[Pair]:
    def side(runs: Sequence[RunAnalysis], chosen: Callable[[RunAnalysis], HostAnalysis]) -> _Side:
        return _Side([run.manifest for run in runs], [chosen(run) for run in runs])

    runs = [*before, *after]
    if all(len(run.hosts) == 1 for run in runs):
        return [(side(before, lambda run: run.hosts[0]), side(after, lambda run: run.hosts[0]))]
    by_name = {id(run): {host.host: host for host in run.hosts} for run in runs}
    common = [host.host for host in runs[0].hosts if all(host.host in by_name[id(run)] for run in runs)]

    def named(name: str) -> Callable[[RunAnalysis], HostAnalysis]:
        return lambda run: by_name[id(run)][name]

    return [(side(before, named(name)), side(after, named(name))) for name in common]


def _differences(pair: Pair, allowed: Sequence[str]) -> list[str]:
    """What differs apart from the lanes, in words.

    :raises ReportError: if something differs that must not
    """
    old, *others = [
        _conditions(manifest, host.host) for side in pair for manifest, host in zip(side.manifests, side.hosts)
    ]
    found: dict[str, str] = {}
    for other in others:
        for key, value in old.items():
            if other[key] != value:
                found.setdefault(key, f"{key.partition(':')[2] or key}: {_short(value)} → {_short(other[key])}")
    refused = [
        text for key, text in found.items() if (kind := key.partition(":")[0]) in ALLOWABLE and kind not in allowed
    ]
    if refused:
        kinds = dict.fromkeys(key.partition(":")[0] for key in found if key.partition(":")[0] in ALLOWABLE)
        raise ReportError(
            "\n  ".join(["the sides did not measure the same thing:", *refused])
            + f"\nmeasure both alike, or accept it with --allow {','.join(kinds)}"
        )
    return list(found.values())


def _conditions(manifest: RunManifest, host: str) -> dict[str, Any]:
    """What a time depends on, as far as the manifest knows it; a kind of ``ALLOWABLE`` before the colon must agree."""
    known = manifest.hosts.get(host) or {}
    gpu, machine = known.get("gpu") or {}, known.get("host") or {}
    weights = known.get("weights") or {}
    return {
        "gpu:GPUs": [(one.get("name"), one.get("memory_total_bytes")) for one in gpu.get("gpus", [])],
        "machine:processors": machine.get("cpu") and [machine["cpu"].get("model"), machine["cpu"].get("count")],
        "weights:weights": {key: weights.get(key) for key in ("sha256", "files_bytes", "manifest")},
        # A port or a folder of logs changes no time; the environment may hold secrets and is not recorded.
        **{
            f"server:server's {key}": manifest.server.get(key)
            for key in (
                "kind",
                "name",
                "model",
                "image",
                "command",
                "podman_args",
                "canary",
                "privileged",
                "rootfs",
                "sleep",
            )
        },
        "driver": (gpu.get("driver") or {}).get("version"),
        "kernel": machine.get("kernel"),
        "operating system": machine.get("os"),
        "packages": known.get("packages"),
    }


def _host_changes(pair: Pair, control: str | None, allowed: Sequence[str]) -> list[Change]:
    before, after = pair
    if control is not None:
        _check_control(pair, control)
    names = dict.fromkeys(lane.name for side in pair for host in side.hosts for lane in host.lanes)
    shared = [name for name in names if name != control and before.lanes(name) and after.lanes(name)]
    return [_lane_change(pair, name, control, len(shared), allowed) for name in names]


def _lane_change(pair: Pair, name: str, control: str | None, comparisons: int, allowed: Sequence[str]) -> Change:
    before, after = pair
    host = after.hosts[0].host
    old, new = before.lanes(name), after.lanes(name)
    if name == control or not old or not new:
        gone = GONE_ALLOWED if "gone" in allowed else GONE
        verdict = CONTROL if name == control else gone if old else NEW
        return Change(host, name, verdict, _middle(old), _middle(new))
    redefined = _redefined(before.defined(name), after.defined(name))
    if redefined and "lanes" not in allowed:
        why = f"defined otherwise ({redefined}); --allow lanes compares all the same"
        return Change(host, name, REDEFINED, _middle(old), _middle(new), why=why)
    if control is not None:
        estimate = _estimate_by_control(pair, name, control)
        why = f"it and {control} need {stats.LEAST_SAMPLES} good samples in each run"
    else:
        estimate = _estimate_by_runs(old, new)
        why = HOW_TO_TELL
    return _judged(Change(host, name, "", _middle(old), _middle(new), estimate, comparisons, why), old, new)


def _estimate_by_runs(old: Sequence[LaneResult], new: Sequence[LaneResult]) -> stats.LogEstimate | None:
    """A run is one value, its median: what drifts from run to run counts in full."""
    sides = [[math.log(lane.median) for lane in side if lane.median is not None] for side in (old, new)]
    return stats.change_of_means(*sides) if min(map(len, sides)) >= RUNS_A_SIDE else None


def _estimate_by_control(pair: Pair, name: str, control: str) -> stats.LogEstimate | None:
    """The lane over the control in the same run, and how that ratio changed."""
    means, variances, degrees = [], 0.0, []
    for side in pair:
        estimates = [_estimate_within(*lanes) for lanes in zip(side.lanes(control), side.lanes(name))]
        known = [estimate for estimate in estimates if estimate is not None]
        if not known or len(known) < len(side.hosts):
            return None
        means.append(sum(estimate.value for estimate in known) / len(known))
        variances += sum(estimate.error**2 for estimate in known) / len(known) ** 2
        degrees += [estimate.degrees for estimate in known]
    return stats.LogEstimate(means[1] - means[0], math.sqrt(variances), min(degrees))


def _estimate_within(old: LaneResult, new: LaneResult) -> stats.LogEstimate | None:
    return speedup(new, old, comparisons=1).estimate if old.n and new.n else None


def _judged(change: Change, old: Sequence[LaneResult], new: Sequence[LaneResult]) -> Change:
    """The change with its verdict; it comes with the reason why there is no estimate."""
    if any(lane.n_failed for lane in new) and not any(lane.n_failed for lane in old):
        return replace(change, verdict=BROKEN, why="")
    if change.estimate is None or change.interval is None or change.could_find is None:
        return replace(change, verdict=UNCLEAR)
    ratio = math.exp(change.estimate.value)
    if not change.interval.contains(1.0) and abs(ratio - 1) >= LEAST_CHANGE:
        return replace(change, verdict=SLOWER if ratio > 1 else FASTER, why="")
    if change.could_find > EFFECT_TO_FIND:
        return replace(
            change, verdict=UNCLEAR, why=f"too noisy: a change of {EFFECT_TO_FIND:.0%} could have been missed"
        )
    return replace(change, verdict=SAME, why="")


def _check_control(pair: Pair, name: str) -> None:
    """Refuses a control that is not the same on both sides.

    :raises ReportError: naming what differs
    """
    missing = [side for side in pair if len(side.lanes(name)) < len(side.hosts)]
    if missing:
        raise ReportError(f"the control {name!r} is not in every run: name a lane that all runs measured")
    lanes = [side.defined(name) for side in pair]
    changed = _redefined(*lanes)
    if changed:
        raise ReportError(f"the control {name!r} is defined otherwise on the two sides ({changed}): name another lane")
    builds = [_build_digests(side, lanes[0]) for side in pair]
    if builds[0] != builds[1]:
        raise ReportError(
            f"the control {name!r} uses another CRIU on each side ({_short(builds[0])} and {_short(builds[1])}): "
            "name a lane whose build did not change, such as a cold start or one of the released CRIU"
        )


def _build_digests(side: _Side, lane: Lane | None) -> list[str | None]:
    """Digests of the build that a restore lane uses, over the runs of a side; nothing for cold starts."""
    if lane is None or lane.start == "cold":
        return []
    digests = [
        digest
        for manifest, host in zip(side.manifests, side.hosts)
        for digest in _digests_of(manifest, host.host, lane.build)
    ]
    return sorted(set(digests), key=str)


def _digests_of(manifest: RunManifest, host: str, build: str) -> list[str | None]:
    """Digests of the CRIU that a build's name stands for on a host."""
    builds = ((manifest.hosts.get(host) or {}).get("criu") or {}).get("builds") or {}
    used = [known for known in builds.values() if build in (known.get("names") or [])]
    return [(known.get("manifest") or {}).get("digest") for known in used]


def unlike(old: RunManifest, new: RunManifest, host: str, lane: str, allowed: Sequence[str] = ()) -> list[str]:
    """Why a lane of two runs on a host must not be compared, in words: other GPUs, servers, weights, another definition.

    :param allowed: of ``ALLOWABLE``, what may differ
    """
    found = [
        text
        for key, text in _differing(old, new, host).items()
        if (kind := key.partition(":")[0]) in ALLOWABLE and kind not in allowed
    ]
    redefined = _redefined(old.lane(lane), new.lane(lane))
    if redefined and "lanes" not in allowed:
        found.append(f"lane defined otherwise: {redefined}")
    return found


def changed_with_it(old: RunManifest, new: RunManifest, host: str, lane: str) -> list[str]:
    """What may explain a change of a lane between two runs on a host, in words: commit, build, driver, kernel, packages."""
    shas = [(manifest.git.sha or "unknown")[:12] for manifest in (old, new)]
    found = [f"commit: {shas[0]} → {shas[1]}"] if shas[0] != shas[1] else []
    defined = new.lane(lane)
    if defined is not None and defined.start == "restore":
        digests = [_short(_digests_of(manifest, host, defined.build)) for manifest in (old, new)]
        found += [f"CRIU: {digests[0]} → {digests[1]}"] if digests[0] != digests[1] else []
    return found + list(_differing(old, new, host).values())


def _differing(old: RunManifest, new: RunManifest, host: str) -> dict[str, str]:
    """What differs of that on which a time depends, in words, by the keys of ``_conditions``."""
    sides = [_conditions(manifest, host) for manifest in (old, new)]
    return {
        key: f"{key.partition(':')[2] or key}: {_short(value)} → {_short(sides[1][key])}"
        for key, value in sides[0].items()
        if sides[1][key] != value
    }


def _redefined(old: Lane | None, new: Lane | None) -> str:
    """Which settings of a lane differ, in words; those that change no time are left out."""
    aside = {"description", "iterations", "baseline"}
    documents = [{} if lane is None else lane.model_dump(exclude=aside) for lane in (old, new)]
    keys = [key for key in documents[0].keys() | documents[1].keys() if documents[0].get(key) != documents[1].get(key)]
    return ", ".join(
        f"{key}: {_short(documents[0].get(key))} → {_short(documents[1].get(key))}" for key in sorted(keys)
    )


def _middle(lanes: Sequence[LaneResult]) -> float | None:
    medians = [lane.median for lane in lanes if lane.median is not None]
    return stats.median(medians) if medians else None


def _short(value: Any, limit: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"
