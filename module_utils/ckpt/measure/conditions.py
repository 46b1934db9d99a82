# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node was doing while something was measured there, and how fast a fixed loop ran just before.

A restore that took longer on a busy machine is no slower restore. The figures let a report say which of the two it was.
They are taken before the clock starts and after the server was stopped.
"""

from __future__ import annotations

import glob
import hashlib
import os
import time
from typing import Any

from ..cuda import processes as cuda
from ..node.smi import whole_number
from ..system.commands import Commands
from ..system.files import read_text

CALIBRATION_BYTES = 8 << 20
CALIBRATION_TURNS = 5
PRESSURES = ("cpu", "memory", "io")
CPUFREQ = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"
# fields of the first line of /proc/stat that add up to all time: user, nice, system, idle, iowait, irq, softirq, steal
STAT_FIELDS = 8
STEAL = 7


class Watch:
    """Begins when it is made: the loop runs, and what the kernel counts is read. The end is `as_dict`."""

    def __init__(self) -> None:
        self._calibration_s = calibrate()
        self._load = os.getloadavg()[0]
        self._since = time.monotonic()
        self._times, self._pressures = cpu_times(), {name: stalled_us(name) for name in PRESSURES}

    def as_dict(self) -> dict[str, Any]:
        """Shares of the time since then, 0 to 1; null where the node does not tell."""
        elapsed_us = max(1.0, (time.monotonic() - self._since) * 1e6)
        times = [now - before for before, now in zip(self._times, cpu_times())]
        pressures = {}
        for name, before in self._pressures.items():
            now = stalled_us(name)
            pressures[name] = None if before is None or now is None else round(min(1.0, (now - before) / elapsed_us), 4)
        return {
            "calibration_s": round(self._calibration_s, 6),
            "load_before": round(self._load, 2),
            "processors": os.cpu_count() or 1,
            "steal_share": round(times[STEAL] / sum(times), 4) if sum(times) else None,
            "pressure": pressures,
            "frequency_mhz": frequency_mhz(),
            "gpus": gpu_states(Commands()),
        }


def calibrate() -> float:
    """Seconds that a fixed loop takes, the median of a few turns: digests of memory, which need one processor."""
    block = bytes(CALIBRATION_BYTES)
    turns = []
    for _ in range(CALIBRATION_TURNS):
        start = time.perf_counter()
        hashlib.sha256(block).digest()
        turns.append(time.perf_counter() - start)
    return sorted(turns)[CALIBRATION_TURNS // 2]


def cpu_times(stat: str = "/proc/stat") -> list[int]:
    """Clock ticks of all processors by kind, the steal of other guests among them; zeros where the kernel does not tell."""
    first = read_text(stat).partition("\n")[0].split()
    numbers = [whole_number(field) for field in first[1 : STAT_FIELDS + 1]]
    if first[:1] != ["cpu"] or len(numbers) < STAT_FIELDS:
        return [0] * STAT_FIELDS
    return [number or 0 for number in numbers]


def stalled_us(name: str, folder: str = "/proc/pressure") -> int | None:
    """Microseconds since the boot in which some task waited for it; None on a kernel without pressure stall information."""
    try:
        text = read_text(f"{folder}/{name}")
    except OSError:
        return None
    some = next((line for line in text.splitlines() if line.startswith("some ")), "")
    return whole_number(some.rpartition("total=")[2])


def frequency_mhz(pattern: str = CPUFREQ) -> float | None:
    """Mean frequency of the processors; None where the machine does not tell, as most virtual ones."""
    found = [whole_number(read_text(path).strip()) for path in glob.glob(pattern)]
    known = [number / 1000 for number in found if number is not None]
    return round(sum(known) / len(known), 1) if known else None


def gpu_states(commands: Commands) -> list[dict[str, Any]]:
    """Clock, temperature, power and reasons for throttling of each GPU; empty without one."""
    rows = cuda.query(
        commands, "--query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_throttle_reasons.active"
    )
    return [
        {
            "clock_mhz": whole_number(row[0]),
            "memory_clock_mhz": whole_number(row[1]),
            "temperature_c": whole_number(row[2]),
            "power_w": whole_number(row[3].partition(".")[0]),
            "throttle": row[4],
        }
        for row in rows
        if len(row) == 5
    ]
