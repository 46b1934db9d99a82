# Copyright: gpuckpt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report's statistics and units for plays and templates: the same code, so that both say the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

try:
    from gpuckpt_report.analysis import stats
    from gpuckpt_report.text import units
except ImportError as error:  # pragma: no cover - only outside the project's environment
    raise ImportError(
        f"{error}; run ansible-playbook from the project's environment, which `make setup` makes"
    ) from error

Samples = list[float]


def ckpt_median(samples: Samples) -> float:
    """Median of the samples."""
    return stats.median(_numbers(samples))


def ckpt_quantile(samples: Samples, q: float) -> float:
    """The q-quantile of the samples, 0 <= q <= 1, interpolated linearly."""
    return stats.quantile(_numbers(samples), float(q))


def ckpt_median_interval(samples: Samples) -> dict[str, float | None]:
    """Median with its 95 % interval: ``{value, low, high}``; no bounds with fewer than six samples."""
    numbers = _numbers(samples)
    return _with_bounds(stats.median(numbers), stats.median_interval(numbers))


def ckpt_ratio_interval(numerator: Samples, denominator: Samples, seed: int = 0) -> dict[str, float | None]:
    """Ratio of two medians with its 95 % interval: ``{value, low, high}``; no bounds with fewer than six samples."""
    result = stats.ratio(_numbers(numerator), _numbers(denominator), int(seed))
    return _with_bounds(result.value, result.interval)


def ckpt_human_bytes(size: float) -> str:
    """A size in bytes as people read it."""
    return units.human_bytes(_numbers([size])[0])


def ckpt_human_seconds(duration: float) -> str:
    """A duration in seconds as people read it."""
    return units.human_seconds(_numbers([duration])[0])


def _numbers(values: Any) -> Samples:
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"expected a list of numbers, not {values!r}")
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        raise ValueError(f"expected numbers only, not {list(values)!r}") from None


def _with_bounds(value: float, interval: stats.Interval | None) -> dict[str, float | None]:
    bounds = (None, None) if interval is None else (interval.low, interval.high)
    return {"value": value, "low": bounds[0], "high": bounds[1]}


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let errors name the filter, as Ansible shows only their message."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        try:
            return function(*arguments, **keywords)
        except ValueError as error:
            raise AnsibleFilterError(f"{function.__name__}: {error}") from error

    return run


FILTERS = (
    ckpt_median,
    ckpt_quantile,
    ckpt_median_interval,
    ckpt_ratio_interval,
    ckpt_human_bytes,
    ckpt_human_seconds,
)


class FilterModule:
    """Register the filters with Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {function.__name__: _named(function) for function in FILTERS}
