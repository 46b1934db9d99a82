# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures of a run as OpenMetrics text.

Only gauges without timestamps: Prometheus's older text format reads the same lines, and node_exporter's textfile
collector reads nothing else. There, `# UNIT` and `# EOF` are comments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from gpuckpt_report.analysis import noise
from gpuckpt_report.analysis.run import HostAnalysis, LaneResult, RunAnalysis

LANE_LABELS = ("run", "host", "lane", "build", "runtime")
MOMENT_LABELS = (*LANE_LABELS, "moment")
RUN_LABELS = ("run", "host")
INFO_LABELS = (*RUN_LABELS, "commit", "server", "model", "gpu", "fake")


@dataclass(frozen=True)
class LaneFigure:
    """A figure of a lane: the name without its unit, the unit (empty for counts), what it is, and where it comes from."""

    name: str
    unit: str
    text: str
    value: Callable[[LaneResult], float | None]
    is_moment: bool = False


LANE_FIGURES = (
    LaneFigure("gpuckpt_lane_median", "seconds", "Median time from the start of the command to the moment.",
               lambda lane: lane.median, True),
    LaneFigure("gpuckpt_lane_interval_low", "seconds", "Lower end of the 95 % interval of the median, from 6 records on.",
               lambda lane: None if lane.interval is None else lane.interval.low, True),
    LaneFigure("gpuckpt_lane_interval_high", "seconds", "Upper end of the 95 % interval of the median, from 6 records on.",
               lambda lane: None if lane.interval is None else lane.interval.high, True),
    LaneFigure("gpuckpt_lane_p90", "seconds", "Time within which 9 of 10 starts reached the moment.",
               lambda lane: lane.p90, True),
    LaneFigure("gpuckpt_lane_good_records", "", "Measured starts that passed the truth gate: n of the median.",
               lambda lane: lane.n),
    LaneFigure("gpuckpt_lane_failed_records", "", "Measured starts that failed.", lambda lane: lane.n_failed),
    LaneFigure("gpuckpt_lane_images", "bytes", "Median size of the checkpoint images.", lambda lane: lane.images_bytes),
    LaneFigure("gpuckpt_lane_gpu", "bytes", "Median GPU memory in the checkpoint.", lambda lane: lane.gpu_bytes),
)  # fmt: skip


def text(run: RunAnalysis, timestamps: bool = False) -> bytes:
    """The figures of a run, UTF-8.

    :param timestamps: give every sample the time at which the run ended, for `promtool tsdb create-blocks-from openmetrics`;
        node_exporter refuses a file with timestamps
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(run, timestamps))
    return bytes(generate_latest(registry))  # type: ignore[no-untyped-call]


class _Figures(Collector):
    """What prometheus_client asks for the figures."""

    def __init__(self, run: RunAnalysis, timestamps: bool) -> None:
        self.run = run
        ended = run.manifest.finished_at or run.manifest.started_at
        self.timestamp = ended.timestamp() if timestamps else None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All families that have a sample."""
        yield from (family for family in self._families() if family.samples)

    def _families(self) -> Iterator[GaugeMetricFamily]:
        for figure in LANE_FIGURES:
            labels = MOMENT_LABELS if figure.is_moment else LANE_LABELS
            rows = (
                (self._lane_labels(host, lane), figure.value(lane)) for host in self.run.hosts for lane in host.lanes
            )
            yield self._family(
                figure.name,
                figure.text,
                figure.unit,
                labels,
                ((values[: len(labels)], value) for values, value in rows),
            )
        manifest = self.run.manifest
        finished = None if manifest.finished_at is None else manifest.finished_at.timestamp()
        for name, description, moment in (
            ("gpuckpt_run_start_time", "When the run started, in seconds since 1970.", manifest.started_at.timestamp()),
            ("gpuckpt_run_finish_time", "When the run ended, in seconds since 1970.", finished),
        ):
            yield self._family(name, description, "seconds", ("run",), [((manifest.run_id,), moment)])
        grades = {noise.CALM: 1.0, noise.NOISY: 0.0}
        calm = [((manifest.run_id, host.host), grades.get(noise.judge(host).grade)) for host in self.run.hosts]
        yield self._family("gpuckpt_host_calm", "1 if the machine was calm, 0 if noisy.", "", RUN_LABELS, calm)
        info = [(self._info(host), 1.0) for host in self.run.hosts]
        yield self._family("gpuckpt_run_information", "What was measured where; always 1.", "", INFO_LABELS, info)

    def _family(
        self,
        name: str,
        description: str,
        unit: str,
        labels: Iterable[str],
        rows: Iterable[tuple[Iterable[str], float | None]],
    ) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, description, labels=list(labels), unit=unit)
        for values, value in rows:
            if value is not None:
                family.add_metric(list(values), float(value), self.timestamp)
        return family

    def _lane_labels(self, host: HostAnalysis, lane: LaneResult) -> tuple[str, ...]:
        defined = lane.lane
        build = "" if defined is None or defined.start == "cold" else defined.build
        runtime = "" if defined is None else defined.runtime
        manifest = self.run.manifest
        return manifest.run_id, host.host, lane.name, build, runtime, manifest.metric

    def _info(self, host: HostAnalysis) -> tuple[str, ...]:
        manifest = self.run.manifest
        known = (manifest.hosts.get(host.host) or {}).get("gpu") or {}
        gpus = ", ".join(str(gpu.get("name")) for gpu in known.get("gpus", []))
        server = [str(manifest.server.get(key) or "") for key in ("name", "model")]
        fake = "true" if self.run.fake else "false"
        return manifest.run_id, host.host, manifest.git.sha or "", *server, gpus, fake
