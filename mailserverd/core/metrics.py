"""Counters and histograms of the daemon, in Prometheus form (RED per protocol).

Each component declares its metrics at module level with these constructors;
``net`` serves ``render()`` at ``/metrics``.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

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
