# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run says of one host, in sentences: the same ones in HTML, Markdown, on the console and in README.

A lane is called faster than another only where their ratio's interval excludes 1. All pairs of lanes count as looked at
(Bonferroni). So among lanes that do not differ a winner is named in at most 5 of 100 runs.
"""

from __future__ import annotations

from gpuckpt_report.analysis.run import HostAnalysis, LaneResult, loss, speedup
from gpuckpt_report.analysis.stats import LEAST_SAMPLES, Ratio
from gpuckpt_report.show.tables import interval_or_values, times_interval
from gpuckpt_report.text.units import human_seconds, times

TIES_NAMED = 3
Compared = tuple[LaneResult, Ratio]


def headline(host: HostAnalysis, metric_name: str) -> str:
    """The lane with the lowest median that never failed, and from which lanes it can be told apart.

    :param metric_name: what the seconds are, in words
    """
    told = [loss(host)] if host.lost else []
    for server, lanes in host.by_server().items():
        measured = [lane for lane in lanes if lane.samples]
        said = _measured(measured, host, metric_name) if measured else []
        told += [f"Another server, {server}:", *said] if said and server is not None else said
    return " ".join(told or ["No lane has been measured."])


def problems(host: HostAnalysis) -> list[str]:
    """Why the run is no success on this host, in words: it was lost, or a lane that was measured never passed."""
    found = [f"{host.host}: {loss(host)}".rstrip(".")] if host.lost else []
    bad = [lane for lane in host.lanes if lane.samples and not lane.n]
    return found + [f"{host.host}: no good record of lane {lane.name} ({_failed(lane)})" for lane in bad]


def _measured(measured: list[LaneResult], host: HostAnalysis, metric_name: str) -> list[str]:
    sound = [lane for lane in measured if lane.n and not lane.n_failed]
    if not sound:
        return [f"No lane ran without a failure: {', '.join(_failed(lane) for lane in measured)}."]
    best = min(sound, key=_median)
    first = f"{best.name}: {metric_name} {human_seconds(_median(best))} (median, n = {best.n}, {_spread(best)})."
    return [first, *_comparisons(best, sound, host)]


def _comparisons(best: LaneResult, sound: list[LaneResult], host: HostAnalysis) -> list[str]:
    others = sorted((lane for lane in sound if lane is not best), key=_median)
    if best.n < LEAST_SAMPLES:
        shown = [_in_words(lane) for lane in others if lane is others[0] or _matters(lane, others, host)]
        return [f"Not compared, since that takes {LEAST_SAMPLES} samples a lane: {_joined(shown)}."] if shown else []
    compared = [(lane, speedup(lane, best, host.comparisons)) for lane in others if lane.n >= LEAST_SAMPLES]
    ties = [pair for pair in compared if not pair[1].told_apart]
    slower = [pair for pair in compared if pair[1].told_apart]
    sentences = [_tied(ties)] if ties else []
    worth_naming = [
        f"{times(ratio.value)} faster than {_in_words(lane)} (interval {times_interval(ratio)})"
        for lane, ratio in slower
        if (lane is others[0]) or _matters(lane, others, host)
    ]
    if worth_naming:
        sentences.append(f"It is {_joined(worth_naming)}.")
    few = [
        f"{_in_words(lane)} ({interval_or_values(lane, human_seconds)})"
        for lane in others
        if lane.n < LEAST_SAMPLES and _matters(lane, others, host)
    ]
    if few:
        sentences.append(f"Too few samples to compare it with {_joined(few)}.")
    return sentences


def _tied(ties: list[Compared]) -> str:
    named = [
        f"{lane.name}, {human_seconds(_median(lane))} ({times(ratio.value)}, interval {times_interval(ratio)})"
        for lane, ratio in ties[:TIES_NAMED]
    ]
    rest = len(ties) - len(named)
    if rest:
        named.append(f"{rest} more")
    return f"It cannot be told apart from {_joined(named)}."


def _matters(lane: LaneResult, others: list[LaneResult], host: HostAnalysis) -> bool:
    """Whether readers want to know of a lane: the baseline, and the fastest cold start."""
    return lane.is_baseline or lane is next((other for other in others if other.kind == "cold"), None)


def _in_words(lane: LaneResult) -> str:
    name = f"a cold start ({lane.name})" if lane.kind == "cold" else lane.name
    return f"{'the baseline ' if lane.is_baseline else ''}{name}, {human_seconds(_median(lane))}"


def _spread(lane: LaneResult) -> str:
    kind = "95 % interval" if lane.interval is not None else "values"
    return f"{kind} {interval_or_values(lane, human_seconds)}"


def _failed(lane: LaneResult) -> str:
    return f"{lane.name} failed {lane.n_failed} of {lane.n + lane.n_failed}"


def _joined(parts: list[str]) -> str:
    return " and ".join(["; ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _median(lane: LaneResult) -> float:
    assert lane.median is not None
    return lane.median
