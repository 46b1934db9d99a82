# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ckpt_statistics import FilterModule

FILTERS = FilterModule().filters()


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("ckpt_median", ([3, 1, 2],), 2.0),
        ("ckpt_median", ([4.0, 1.0],), 2.5),
        ("ckpt_quantile", ([1, 2, 3, 4, 5], 0.9), 4.6),
        ("ckpt_median_interval", ([1.0, 2.0],), {"value": 1.5, "low": None, "high": None}),
        ("ckpt_ratio_interval", ([8.0] * 7, [2.0] * 6), pytest.approx({"value": 4.0, "low": 4.0, "high": 4.0})),
        ("ckpt_human_bytes", (3 * 2**30,), "3.00 GiB"),
        ("ckpt_human_seconds", (0.17,), "170 ms"),
    ],
)
def test_known_answers(name, arguments, expected):
    assert FILTERS[name](*arguments) == expected


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ckpt_median", ([],), "ckpt_median: .*at least one sample"),
        ("ckpt_median", ("12",), "ckpt_median: expected a list"),
        ("ckpt_quantile", ([1.0], 90), "between 0 and 1"),
        ("ckpt_ratio_interval", ([1.0], ["fast"]), "numbers only"),
        ("ckpt_ratio_interval", ([1.0], [0.0]), "positive median"),
    ],
)
def test_errors_name_the_filter(name, arguments, message):
    with pytest.raises(AnsibleFilterError, match=message):
        FILTERS[name](*arguments)


def test_every_filter_is_documented(request):
    folder = request.config.rootpath / "filter_plugins"
    assert {path.stem for path in folder.glob("*.yml")} >= FILTERS.keys()
