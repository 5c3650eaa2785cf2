"""Counters and histograms of the daemon, in Prometheus form (RED per protocol).

Each component declares its metrics at module level with these constructors;
``net`` serves ``render()`` at ``/metrics``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

if TYPE_CHECKING:
    from collections.abc import Mapping

REGISTRY = CollectorRegistry(auto_describe=False)
LATENCY_BUCKETS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)


def counter(name: str, help_text: str, labels: tuple[str, ...] = ()) -> Counter:
    """Declare a counter named ``mailserverd_NAME_total``."""
    return Counter(f"mailserverd_{name}", help_text, labels, registry=REGISTRY)


def gauge(name: str, help_text: str, labels: tuple[str, ...] = ()) -> Gauge:
    """Declare a gauge named ``mailserverd_NAME``."""
    return Gauge(f"mailserverd_{name}", help_text, labels, registry=REGISTRY)


def histogram(name: str, help_text: str, labels: tuple[str, ...] = ()) -> Histogram:
    """Declare a histogram of seconds named ``mailserverd_NAME``."""
    return Histogram(
        f"mailserverd_{name}",
        help_text,
        labels,
        registry=REGISTRY,
        buckets=LATENCY_BUCKETS,
    )


# RED (rate, errors, duration) per protocol, shared by every front end.
REQUESTS = counter("requests", "Commands or calls served", ("protocol", "command"))
ERRORS = counter("errors", "Commands or calls refused", ("protocol", "kind"))
DURATION = histogram("request_seconds", "Time to serve a command", ("protocol",))
CONNECTIONS = gauge("connections", "Open connections", ("protocol",))


def render() -> bytes:
    """Return all metrics in the Prometheus text format."""
    return generate_latest(REGISTRY)


def merge(parts: Mapping[str, bytes]) -> bytes:
    """Return what several processes rendered as one text, by a label ``process``."""
    heads: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for process, text in parts.items():
        label = b'process="' + process.encode() + b'"'
        name = b""
        for line in text.splitlines():
            if line.startswith(b"#"):
                name = line.split(b" ", 3)[2]
                found = heads.setdefault(name, [])
                if len(found) < 2 and line not in found:  # HELP and TYPE
                    found.append(line)
            else:
                samples.setdefault(name, []).append(_labelled(line, label))
    return b"".join(
        line + b"\n"
        for name, head in heads.items()
        for line in (*head, *samples.get(name, ()))
    )


def _labelled(sample: bytes, label: bytes) -> bytes:
    """Add a label to ``name 1.0`` or ``name{a="b"} 1.0``."""
    at = len(sample.partition(b" ")[0].partition(b"{")[0])
    if sample[at : at + 1] == b"{":
        return sample[: at + 1] + label + b"," + sample[at + 1 :]
    return sample[:at] + b"{" + label + b"}" + sample[at:]
