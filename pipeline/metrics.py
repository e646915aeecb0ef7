"""Every metric of every role: its name, kind, labels and a sentence for the operator.

Names are a `Literal`, so that a typo is a type error. A metric that is not in the table cannot be reported.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

Kind = Literal["counter", "gauge", "histogram"]

MetricName = Literal[
    "tidemark_gateway_events_total",
    "tidemark_gateway_requests_total",
    "tidemark_gateway_request_seconds",
    "tidemark_gateway_pending_events",
    "tidemark_gateway_pending_bytes",
    "tidemark_gateway_append_failures_total",
    "tidemark_gateway_append_events",
    "tidemark_gateway_unkept_rejections_total",
    "tidemark_partition_next_offset",
    "tidemark_partition_lag_records",
    "tidemark_partition_events",
    "tidemark_partition_stream_time_seconds",
    "tidemark_relayed_cells_total",
    "tidemark_relayed_duplicates_total",
    "tidemark_relay_failures_total",
    "tidemark_outbox_dropped_entries",
    "tidemark_intents_total",
    "tidemark_dedup_decisions_total",
    "tidemark_restatements_total",
    "tidemark_snapshots_total",
    "tidemark_snapshot_stream_time_seconds",
    "tidemark_sink_pending_intents",
    "tidemark_sink_held_intents",
    "tidemark_sink_results",
    "tidemark_sink_unmapped_deadline_seconds",
]


class MetricSpec(NamedTuple):
    """What a metric is. `sentence` is its help text; `buckets` are upper bounds, of histograms only."""

    kind: Kind
    sentence: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: Final[dict[MetricName, MetricSpec]] = {
    "tidemark_gateway_events_total": MetricSpec(
        "counter",
        "Events by the gateway's answer. `unknown`: the log did not confirm, and the client sends the event again.",
        ("status", "reason"),
    ),
    "tidemark_gateway_requests_total": MetricSpec(
        "counter", "Requests by route and HTTP status. 5xx: check the log and the stores.",
        ("route", "status"),
    ),
    "tidemark_gateway_request_seconds": MetricSpec(
        "histogram", "Duration of requests by route. The log's durable append dominates ingest.",
        ("route",), (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
    ),
    "tidemark_gateway_pending_events": MetricSpec(
        "gauge", "Events in the gateway that are not durable yet. At the limit, requests get 503."
    ),
    "tidemark_gateway_pending_bytes": MetricSpec(
        "gauge", "Bytes of the events in the gateway that are not durable yet."
    ),
    "tidemark_gateway_append_failures_total": MetricSpec(
        "counter", "Appends that the log did not confirm. Clients send these events again under the same ids."
    ),
    "tidemark_gateway_append_events": MetricSpec(
        "histogram", "Events per record that was written to the log. Small records are costly for the workers.",
        (), (1, 3, 10, 30, 100, 300, 1000),
    ),
    "tidemark_gateway_unkept_rejections_total": MetricSpec(
        "counter", "Rejected events that could not be written to `usage.rejected`. Only their sender still has them."
    ),
    "tidemark_partition_next_offset": MetricSpec(
        "gauge", "Offset of the next record for this role. Does not grow: the role is stuck or stopped.",
        ("topic", "partition"),
    ),
    "tidemark_partition_lag_records": MetricSpec(
        "gauge", "Records in the log that this role has not committed. Grows: add workers, or check the stores.",
        ("topic", "partition"),
    ),
    "tidemark_partition_events": MetricSpec(
        "gauge",
        "Events since the log began, by outcome; at every commit `received` is the sum of the others. `deferred` "
        "events wait for a dedup decision. `deferred` stays above 0: the archive is behind.",
        ("partition", "outcome"),
    ),
    "tidemark_partition_stream_time_seconds": MetricSpec(
        "gauge", "Stream time of the last commit, Unix time. Over a minute behind: there are no ticks, or no worker.",
        ("partition",),
    ),
    "tidemark_relayed_cells_total": MetricSpec("counter", "Cells written to `usage_hourly`."),
    "tidemark_relayed_duplicates_total": MetricSpec("counter", "Duplicates written to `usage_duplicates`."),
    "tidemark_relay_failures_total": MetricSpec(
        "counter", "Writes that a store did not confirm to a relay, which repeats them. Grows: the store is down.",
        ("view",),
    ),
    "tidemark_outbox_dropped_entries": MetricSpec(
        "gauge",
        "Cells and duplicates that were dropped because more than TIDEMARK_OUTBOX_MAX waited. Above 0: once ClickHouse "
        "is back, `tidemark rebuild usage_hourly` makes them again.",
        ("partition", "kind"),
    ),
    "tidemark_intents_total": MetricSpec("counter", "Intents appended to `billing.reports`, repeats included."),
    "tidemark_dedup_decisions_total": MetricSpec(
        "counter", "Dedup decisions on deferred events, repeats included: `new` or `duplicate`.", ("decision",)
    ),
    "tidemark_restatements_total": MetricSpec(
        "counter", "Records that begin or end the restatement of an account, repeats included."
    ),
    "tidemark_snapshots_total": MetricSpec(
        "counter",
        "Snapshots by outcome, `written` or `failed`. Counting goes on without them, and the worker takes a failed "
        "snapshot again.",
        ("outcome",),
    ),
    "tidemark_snapshot_stream_time_seconds": MetricSpec(
        "gauge",
        "Stream time of the last snapshot that this process wrote, Unix time. Older than the log's retention: the live "
        "view cannot be rebuilt.",
        ("partition",),
    ),
    "tidemark_sink_pending_intents": MetricSpec(
        "gauge", "Intents that are not settled. Grows over hours: Stripe refuses them, or the rate is too low."
    ),
    "tidemark_sink_held_intents": MetricSpec(
        "gauge", "Held intents by the reason. `unmapped`: bind the account.", ("hold",)
    ),
    "tidemark_sink_results": MetricSpec(
        "gauge", "Answers of Stripe to this process, by result. `dead` needs an operator.", ("result",)
    ),
    "tidemark_sink_unmapped_deadline_seconds": MetricSpec(
        "gauge", "When Stripe will refuse the oldest report of an unmapped account, Unix time; absent without reports."
    ),
}  # fmt: skip


class Metrics:
    """The metrics of one process or one app, in a registry of its own, so that two apps never share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counters: dict[MetricName, Counter] = {}
        self._gauges: dict[MetricName, Gauge] = {}
        self._histograms: dict[MetricName, Histogram] = {}

    def add(self, name: MetricName, amount: float = 1, **labels: str) -> None:
        """Count up a counter."""
        if name not in self._counters:
            spec = self._spec(name, "counter")
            self._counters[name] = Counter(name, spec.sentence, spec.labels, registry=self.registry)
        counter = self._counters[name]
        (counter.labels(**labels) if labels else counter).inc(amount)

    def set(self, name: MetricName, value: float, **labels: str) -> None:
        """Set a gauge."""
        if name not in self._gauges:
            spec = self._spec(name, "gauge")
            self._gauges[name] = Gauge(name, spec.sentence, spec.labels, registry=self.registry)
        gauge = self._gauges[name]
        (gauge.labels(**labels) if labels else gauge).set(value)

    def clear(self, name: MetricName) -> None:
        """Forget a gauge's values, all labels: what is no longer so must not be shown as if it were."""
        gauge = self._gauges.pop(name, None)
        if gauge is not None:
            self.registry.unregister(gauge)

    def observe(self, name: MetricName, value: float, **labels: str) -> None:
        """Add an observation to a histogram."""
        if name not in self._histograms:
            spec = self._spec(name, "histogram")
            self._histograms[name] = Histogram(
                name, spec.sentence, spec.labels, registry=self.registry, buckets=spec.buckets
            )
        histogram = self._histograms[name]
        (histogram.labels(**labels) if labels else histogram).observe(value)

    def render(self) -> tuple[bytes, str]:
        """The exposition for Prometheus and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _spec(self, name: MetricName, kind: Kind) -> MetricSpec:
        spec = METRICS[name]
        if spec.kind != kind:
            raise TypeError(f"{name} is a {spec.kind}, not a {kind}")
        return spec
