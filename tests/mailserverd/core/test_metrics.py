"""Metrics of several processes in one text."""

from __future__ import annotations

from mailserverd.core.metrics import merge

ONE = b"""# HELP a_total What
# TYPE a_total counter
a_total{kind="x y"} 1.0
a_total{kind="z"} 2.0
# HELP b Other
# TYPE b gauge
b 3.0
"""
OTHER = b"""# HELP b Other
# TYPE b gauge
b 4.0
# HELP c Third
# TYPE c gauge
c 5.0
"""


def test_each_sample_says_whose_it_is() -> None:
    merged = merge({"worker-0": ONE, "background": OTHER}).decode()
    assert merged.splitlines() == [
        "# HELP a_total What",
        "# TYPE a_total counter",
        'a_total{process="worker-0",kind="x y"} 1.0',
        'a_total{process="worker-0",kind="z"} 2.0',
        "# HELP b Other",
        "# TYPE b gauge",
        'b{process="worker-0"} 3.0',
        'b{process="background"} 4.0',
        "# HELP c Third",
        "# TYPE c gauge",
        'c{process="background"} 5.0',
    ]
