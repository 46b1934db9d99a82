# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run says of many hosts, in sentences, tables and JSON: the same ones on the page, in Markdown and on the console."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from gpuckpt_report.analysis import noise, stats
from gpuckpt_report.analysis.fleet import FAILURES_TOLERATED, Finding, Fleet, FleetLane, findings, sound, speedup
from gpuckpt_report.records.schema import RunManifest
from gpuckpt_report.show.tables import times_interval
from gpuckpt_report.text.table import Table
from gpuckpt_report.text.units import human_seconds, seconds, times

NAMES_TOLD = 5
TIES_TOLD = 3
VALUES_TOLD = 6


def loss(fleet: Fleet) -> str:
    """Which hosts are lost, in a sentence; empty where none is."""
    if not fleet.lost:
        return ""
    verb = "is" if len(fleet.lost) == 1 else "are"
    return f"{len(fleet.lost)} of {len(fleet.hosts)} hosts {verb} LOST: {named(fleet.lost)}."


def headline(fleet: Fleet) -> str:
    """Which lane is the fastest on the hosts as a whole, and how sure that is."""
    lanes = sound(fleet)
    if lanes:
        told: list[str] = []
        for server in sorted({lane.server for lane in lanes}, key=lambda name: (name is not None, name)):
            best, *others = [lane for lane in lanes if lane.server == server]
            told += ([] if server is None else [f"Another server, {server}:"]) + list(_best(best, others, fleet))
        return " ".join(told)
    if not fleet.lanes:
        return "No lane has been measured."
    failed = ", ".join(
        f"{lane.name} failed {lane.n_failed} of {lane.n + lane.n_failed}, on {counted(len(lane.silent), 'host')} always"
        for lane in fleet.lanes
    )
    return f"No lane passed on every host and failed in at most {tolerated()} of its starts: {failed}."


def _best(best: FleetLane, others: Sequence[FleetLane], fleet: Fleet) -> Iterator[str]:
    low, high = best.values[0], best.values[-1]
    yield (
        f"{best.name}: {fleet.metric_name} {human_seconds(_median(best))} "
        f"(median of {counted(best.hosts, 'host')}, {_bounds(best)}; "
        f"hosts lie between {human_seconds(low)} and {human_seconds(high)})."
    )
    if best.n_failed:
        yield f"It failed {best.n_failed} of {best.n + best.n_failed} starts."
    if best.hosts < stats.LEAST_SAMPLES:
        if others:
            yield f"Not compared with other lanes, since that takes {stats.LEAST_SAMPLES} hosts."
        return
    compared = [(lane, speedup(lane, best, fleet.comparisons)) for lane in others]
    ties = [(lane, ratio) for lane, ratio in compared if ratio is not None and not ratio.told_apart]
    if ties:
        told = [f"{lane.name}, {human_seconds(_median(lane))} ({_ratio(ratio)})" for lane, ratio in ties[:TIES_TOLD]]
        rest = [f"{len(ties) - TIES_TOLD} more"] if len(ties) > TIES_TOLD else []
        yield f"It cannot be told apart from {_joined([*told, *rest])}."
    cold = next((lane for lane in others if lane.kind == "cold"), None)
    slower = [
        f"{times(ratio.value)} faster than {_in_words(lane)} (interval {times_interval(ratio)})"
        for lane, ratio in compared
        if ratio is not None and ratio.told_apart and (lane is others[0] or lane.is_baseline or lane is cold)
    ]
    if slower:
        yield f"On the median host it is {_joined(slower)}."


def noisy(fleet: Fleet) -> str:
    """One sentence on how calm the hosts were."""
    counts = Counter(fleet.grades.values())
    names = [host for host, grade in fleet.grades.items() if grade == noise.NOISY]
    parts = [f"{counts[noise.CALM]} of {len(fleet.grades)} hosts were calm"]
    if names:
        parts.append(f"{len(names)} noisy ({named(names)})")
    if counts[noise.UNKNOWN]:
        parts.append(f"how calm {counts[noise.UNKNOWN]} were is not known")
    return "; ".join(parts) + "."


def look(fleet: Fleet) -> list[tuple[str, str]]:
    """Each host that needs a look, the gravest first, with all that is to be said of it."""
    told: dict[str, list[str]] = {}
    for finding in findings(fleet):
        told.setdefault(finding.host, []).append(finding.text)
    return [(host, "; ".join(texts)) for host, texts in told.items()]


def lanes(fleet: Fleet) -> Table:
    """Every lane over all hosts, the fastest first."""
    headings = [
        *("lane", "hosts", "median s", "95 % interval, or the values", "middle 80 % of hosts", "slowest host"),
        *("between hosts", "within a host", "× faster than baseline", "its interval", "starts", "failed"),
    ]
    return Table(headings, [_row(lane) for lane in ranked(fleet)])


def _row(lane: FleetLane) -> list[str]:
    name = f"{lane.name} (baseline)" if lane.is_baseline else lane.name
    middle, slowest = "–", "–"
    if lane.hosts >= stats.LEAST_SAMPLES:
        middle = " … ".join(seconds(stats.quantile(lane.values, q)) for q in (0.1, 0.9))
    if lane.medians:
        host = max(lane.medians, key=lane.medians.__getitem__)
        slowest = f"{host}, {seconds(lane.medians[host])}"
    figures = [str(lane.hosts), seconds(lane.median), _interval_or_values(lane), middle, slowest]
    ratio = ["1", "–"] if lane.is_baseline else ["–", "–"]
    if lane.speedup is not None:
        ratio = [times(lane.speedup.value), times_interval(lane.speedup)]
    counts = [str(lane.n + lane.n_failed), str(lane.n_failed)]
    return [name, *figures, _share(lane.spread.between), _share(lane.spread.within), *ratio, *counts]


def lanes_narrow(fleet: Fleet) -> Table:
    """What a terminal of 80 columns has room for."""
    rows = []
    for lane in ranked(fleet):
        median, ratio = seconds(lane.median), "–"
        if lane.interval is not None:
            median += f" ({seconds(lane.interval.low)}–{seconds(lane.interval.high)})"
        if lane.speedup is not None:
            ratio = times(lane.speedup.value)
            if lane.speedup.interval is not None:
                ratio += f" ({times(lane.speedup.interval.low)}–{times(lane.speedup.interval.high)})"
        figures = [median, str(lane.hosts), _share(lane.spread.between), str(lane.n_failed)]
        rows.append([lane.name, *figures, "baseline" if lane.is_baseline else ratio])
    return Table(["lane", "median s (interval)", "hosts", "differ", "failed", "× faster (interval)"], rows)


def failures(fleet: Fleet) -> Table | None:
    """Failed records by reason and lane; None where there is none."""
    groups: dict[tuple[str, str], Counter[str]] = {}
    for host in fleet.hosts:
        for document in host.failures:
            groups.setdefault((document["reason"], document["lane"]), Counter())[host.host] += 1
    rows = [
        [reason, lane, str(hosts.total()), str(len(hosts)), named([host for host, _ in hosts.most_common()])]
        for (reason, lane), hosts in sorted(groups.items(), key=lambda item: -item[1].total())
    ]
    return Table(["reason", "lane", "records", "hosts", "which"], rows) if rows else None


def differences(manifest: RunManifest, most: int = 30) -> Table | None:
    """What the manifest knows of hosts and is not the same for all: the likely reasons of their differing.

    :param most: number of rows; facts with the fewest values come first, since they make groups
    """
    facts: dict[str, Counter[str]] = {}
    for known in manifest.hosts.values():
        for key, value in _leaves(known):
            facts.setdefault(key, Counter())[value] += 1
    total = len(manifest.hosts)
    differing = {
        key: values for key, values in facts.items() if (len(values) > 1 or values.total() < total) and total > 1
    }
    grouping = sorted(differing.items(), key=lambda item: (len(item[1]), item[0]))[:most]
    rows = [[key, _values(values, total)] for key, values in grouping]
    return Table(["fact", "hosts"], rows) if rows else None


def _values(values: Counter[str], total: int) -> str:
    told = [f"{count} × {value}" for value, count in values.most_common(4)]
    rest = len(values) - len(told)
    told += [f"{rest} other values"] if rest > 0 else []
    told += [f"{total - values.total()} × not known"] if values.total() < total else []
    return "; ".join(told)


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        text = tree if isinstance(tree, str) else json.dumps(tree)
        yield prefix, text if len(text) <= 60 else text[:59] + "…"


def document(fleet: Fleet) -> dict[str, Any]:
    """A fleet as JSON; times in seconds."""
    manifest = fleet.manifest.model_dump(mode="json", include={"run_id", "started_at", "finished_at", "git", "metric"})
    return manifest | {
        "headline": f"{loss(fleet)} {headline(fleet)}".strip(),
        "lost": fleet.lost,
        "lanes": [_lane_document(lane) for lane in fleet.lanes],
        "findings": [_finding_document(finding) for finding in findings(fleet)],
        "hosts": [
            {
                "host": host.host,
                "noise": fleet.grades[host.host],
                "lost": host.lost,
                "missing": {
                    name: {"measured": done, "wanted": wanted} for name, (done, wanted) in host.missing.items()
                },
                "lanes": [
                    {"lane": lane.name, "median_s": lane.median, "values_s": lane.values, "failed": lane.n_failed}
                    for lane in host.lanes
                ],
            }
            for host in fleet.hosts
        ],
    }


def _lane_document(lane: FleetLane) -> dict[str, Any]:
    faster = lane.speedup
    return {
        "lane": lane.name,
        "baseline": lane.is_baseline,
        "hosts": lane.hosts,
        "median_s": lane.median,
        "interval_s": None if lane.interval is None else [lane.interval.low, lane.interval.high],
        "between_hosts": lane.spread.between,
        "within_a_host": lane.spread.within,
        "starts": lane.n + lane.n_failed,
        "failed": lane.n_failed,
        "never_passed_on": lane.silent,
        "times_faster": None if faster is None else faster.value,
        "times_faster_interval": None
        if faster is None or faster.interval is None
        else [faster.interval.low, faster.interval.high],
    }


def _finding_document(finding: Finding) -> dict[str, Any]:
    kinds = ("lost", "never_passed", "slow", "failed", "fast")
    return {"host": finding.host, "kind": kinds[finding.rank], "text": finding.text}


def ranked(fleet: Fleet) -> list[FleetLane]:
    """The lanes by their medians, fastest first; those without one last."""
    return sorted(fleet.lanes, key=lambda lane: (lane.server or "", lane.median is None, lane.median or 0.0))


def named(names: Sequence[str], most: int = NAMES_TOLD) -> str:
    """Some names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 host``, ``30 hosts``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def tolerated() -> str:
    """The share of failed starts with which a lane may still be called the best."""
    return f"{FAILURES_TOLERATED:.0%}"


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(["; ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _bounds(lane: FleetLane) -> str:
    if lane.interval is None:
        return f"no interval below {stats.LEAST_SAMPLES} hosts"
    return f"95 % interval {human_seconds(lane.interval.low)} … {human_seconds(lane.interval.high)}"


def _interval_or_values(lane: FleetLane) -> str:
    if lane.interval is None:
        return ", ".join(seconds(value) for value in lane.values[:VALUES_TOLD]) or "–"
    return f"{seconds(lane.interval.low)} … {seconds(lane.interval.high)}"


def _ratio(ratio: stats.Ratio) -> str:
    return times(ratio.value) + ("" if ratio.interval is None else f", interval {times_interval(ratio)}")


def _in_words(lane: FleetLane) -> str:
    name = f"a cold start ({lane.name})" if lane.kind == "cold" else lane.name
    return f"{'the baseline ' if lane.is_baseline else ''}{name}, {human_seconds(_median(lane))}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _median(lane: FleetLane) -> float:
    assert lane.median is not None
    return lane.median
