# SPDX-License-Identifier: GPL-3.0-or-later
"""Which slimming to use, judged by what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpuckpt_report.analysis.run import HostAnalysis, LaneResult, speedup
from gpuckpt_report.text.units import human_bytes, human_seconds, times


@dataclass(frozen=True)
class Advice:
    """The lane to use, and the reasons in sentences."""

    lane: str
    slimming: str
    reasons: list[str]


def advise(host: HostAnalysis) -> Advice | None:
    """Picks the slimming whose best lane is ready first; None unless several slimmings can be compared.

    A lane with a failed iteration is never picked. Where the two fastest cannot be told apart, the smaller checkpoint
    wins.
    """
    own = host.by_server().get(None, [])
    restores = [lane for lane in own if lane.kind == "restore" and lane.lane is not None and lane.n]
    if len({_slimming(lane) for lane in restores}) < 2:
        return None
    sound = [lane for lane in restores if not lane.n_failed]
    best = _best_per_slimming(sound)
    if not best:
        return None
    winner, reasons = _choose(best, host.comparisons)
    reasons += [_against(winner, other) for other in best if other is not winner]
    reasons += [_unsound(lane) for lane in restores if lane.n_failed]
    return Advice(winner.name, _slimming(winner), reasons)


def _choose(best: Sequence[LaneResult], comparisons: int) -> tuple[LaneResult, list[str]]:
    if len(best) == 1:
        return best[0], []
    first, second = best[:2]
    if speedup(second, first, comparisons).told_apart:
        return first, []
    undecided = f"{first.name} and {second.name} cannot be told apart with n = {first.n} and {second.n}"
    if first.images_bytes is None or second.images_bytes is None:
        return first, [f"{undecided}; the one with the lower median is named"]
    smaller = first if first.images_bytes <= second.images_bytes else second
    return smaller, [f"{undecided}; the one with the smaller checkpoint is named"]


def _best_per_slimming(lanes: Sequence[LaneResult]) -> list[LaneResult]:
    """The fastest lane of each slimming, fastest first."""
    best: dict[str, LaneResult] = {}
    for lane in sorted(lanes, key=_median):
        best.setdefault(_slimming(lane), lane)
    return list(best.values())


def _against(winner: LaneResult, other: LaneResult) -> str:
    way = "without slimming" if _slimming(other) == "none" else f"slimming {_slimming(other)}"
    sentence = f"{way}, the best lane ({other.name}) takes {human_seconds(_median(other))}"
    sentence += f", {times(_median(other) / _median(winner))} the {human_seconds(_median(winner))} of {winner.name}"
    if winner.images_bytes is not None and other.images_bytes is not None:
        sentence += f"; its images are {human_bytes(other.images_bytes)} rather than {human_bytes(winner.images_bytes)}"
    return sentence


def _unsound(lane: LaneResult) -> str:
    return f"{lane.name} is left out: {lane.n_failed} of {lane.n + lane.n_failed} iterations failed"


def _slimming(lane: LaneResult) -> str:
    assert lane.lane is not None
    return lane.lane.slimming


def _median(lane: LaneResult) -> float:
    assert lane.median is not None
    return lane.median
