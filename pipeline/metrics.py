"""The table of all metrics with name, kind, labels and a sentence for the operator.

Names are a `Literal`, so that a typo is a type error. A metric that is not in the table cannot be reported.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple, TypeVar, cast

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

Kind = Literal["counter", "gauge", "histogram"]
M = TypeVar("M", Counter, Gauge, Histogram)

MetricName = Literal[
    "tidemark_gateway_events_total",
    "tidemark_gateway_requests_total",
    "tidemark_gateway_request_seconds",
    "tidemark_gateway_fallback_checks_total",
    "tidemark_gateway_pending_events",
    "tidemark_gateway_pending_bytes",
    "tidemark_gateway_append_failures_total",
    "tidemark_gateway_append_events",
    "tidemark_gateway_unkept_rejections_total",
    "tidemark_gateway_meter_set_read_seconds",
    "tidemark_gateway_keys_ending",
    "tidemark_gateway_keys_read_seconds",
    "tidemark_webhook_deliveries_total",
    "tidemark_native_core",
    "tidemark_partition_next_offset",
    "tidemark_partition_lag_records",
    "tidemark_partition_events",
    "tidemark_partition_stream_time_seconds",
    "tidemark_skipped_events_total",
    "tidemark_relayed_cells_total",
    "tidemark_relayed_duplicates_total",
    "tidemark_relay_failures_total",
    "tidemark_outbox_dropped_entries",
    "tidemark_intents_total",
    "tidemark_dedup_decisions_total",
    "tidemark_restatements_total",
    "tidemark_measured_adjustments_total",
    "tidemark_correction_adjustments_total",
    "tidemark_measured_left_out_accounts",
    "tidemark_measured_until_seconds",
    "tidemark_snapshots_total",
    "tidemark_snapshot_stream_time_seconds",
    "tidemark_sink_pending_intents",
    "tidemark_sink_held_intents",
    "tidemark_sink_open_breakers",
    "tidemark_sink_results",
    "tidemark_sink_held_deadline_seconds",
    "tidemark_auditor_failures_total",
    "tidemark_billing_turn_seconds",
    "tidemark_billing_drafts",
    "tidemark_billing_late_drafts",
    "tidemark_billing_unequal_drafts",
    "tidemark_billing_invoices",
    "tidemark_billing_not_sold",
    "tidemark_mirror_events",
    "tidemark_mirror_fetches",
    "tidemark_mirror_delay_seconds",
    "tidemark_mirror_held_events",
    "tidemark_mirror_set_aside_events",
    "tidemark_mirror_set_aside_accounts",
    "tidemark_mirror_unreadable_accounts",
    "tidemark_mirror_oldest_event_age_seconds",
    "tidemark_mirror_gaps",
    "tidemark_mirror_overlaps",
    "tidemark_mirror_due_bindings",
    "tidemark_mirror_due_binding_age_seconds",
    "tidemark_mirror_recovered_events",
    "tidemark_mirror_walked_seconds",
    "tidemark_mirror_canary_heard_seconds",
    "tidemark_mirror_canary_silent",
    "tidemark_dunning_open_cases",
    "tidemark_dunning_canceled_cases",
    "tidemark_dunning_judged_cases",
    "tidemark_dunning_recovered_ratio",
    "tidemark_changes_differing",
    "tidemark_trials",
    "tidemark_trials_flagged",
    "tidemark_duplicate_subscriptions",
    "tidemark_unfinalized_invoices",
    "tidemark_credits_stuck_orders",
    "tidemark_changes_oldest_age_seconds",
    "tidemark_migrations_halted",
    "tidemark_seats_unpaid_accounts",
    "tidemark_seats_oldest_age_seconds",
    "tidemark_notices_swept_seconds",
    "tidemark_notices_sweep_duration_seconds",
    "tidemark_notices_reached",
    "tidemark_notices_waiting",
    "tidemark_notices_oldest_age_seconds",
    "tidemark_notices_dead",
    "tidemark_notice_attempts_total",
]


class MetricSpec(NamedTuple):
    """One metric. `sentence` is the help text. `buckets` are the upper bounds of a histogram's buckets."""

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
    "tidemark_gateway_fallback_checks_total": MetricSpec(
        "counter",
        "Checks that were answered without a store, by `on_error` of their features. Grows: Redis or PostgreSQL does "
        "not answer; the log says once a minute which.",
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
    "tidemark_webhook_deliveries_total": MetricSpec(
        "counter",
        "Deliveries of Stripe that were answered by their content: `kept`, `bad_signature` (answered 400), or the "
        "reason of the quarantine. If `bad_signature` grows and `kept` does not, the secret is wrong.",
        ("outcome",),
    ),
    "tidemark_gateway_meter_set_read_seconds": MetricSpec(
        "gauge",
        "When the gateway last read the meter set from Redis, Unix time. Over 10 s old: Redis does not answer, and the "
        "gateway checks events with the meter set of that time.",
    ),
    "tidemark_gateway_keys_ending": MetricSpec(
        "gauge", "API keys in SQL that end within 14 days and have no successor: `tidemark key rotate` makes one."
    ),
    "tidemark_gateway_keys_read_seconds": MetricSpec(
        "gauge",
        "When the gateway last read the API keys from PostgreSQL, Unix time. A day later the keys are answered with "
        "503.",
    ),
    "tidemark_native_core": MetricSpec(
        "gauge",
        "1: worker or archive uses the C core. 0: Python does the same work, at a lower speed; `tidemark doctor` says "
        "why.",
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
    "tidemark_skipped_events_total": MetricSpec(
        "counter",
        "Events, repeats included, that a meter with `on_bad: skip_meter` did not count because of their data. They "
        "count in their other meters. Grows: correct the producer.",
        ("meter", "reason"),
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
    "tidemark_correction_adjustments_total": MetricSpec(
        "counter", "Adjustments appended by the corrector for corrected events, repeats included."
    ),
    "tidemark_measured_adjustments_total": MetricSpec(
        "counter", "Adjustments appended by the measurer for meters that are measured, repeats included."
    ),
    "tidemark_measured_left_out_accounts": MetricSpec(
        "gauge",
        "Accounts that the last pass of the measurer left out, because they have more than a million samples. Above 0: "
        "their measured meters stand still; the worker's log names them.",
        ("partition",),
    ),
    "tidemark_measured_until_seconds": MetricSpec(
        "gauge",
        "Instant up to which the measured meters of a partition are told, Unix time; absent without such meters. "
        "More than minutes behind stream time: the archive is behind, or ClickHouse does not answer.",
        ("partition",),
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
        "gauge",
        "Held intents by the reason. `unmapped`: bind the account. `meter`, `account`, `breaker`, `unknown`: see the "
        "log.",
        ("hold",),
    ),
    "tidemark_sink_open_breakers": MetricSpec(
        "gauge", "Meters whose reports wait, because Stripe refused several in a row alike. Above 0: see the log."
    ),
    "tidemark_sink_results": MetricSpec(
        "gauge", "Answers of Stripe to this process, by result. `dead` needs an operator.", ("result",)
    ),
    "tidemark_sink_held_deadline_seconds": MetricSpec(
        "gauge", "When Stripe will refuse the first held report for its age, Unix time; absent without held reports."
    ),
    "tidemark_auditor_failures_total": MetricSpec(
        "counter",
        "Reconciliations of the role `auditor` that could not be run or recorded; it tries again every minute. Grows: "
        "a store or Stripe does not answer, see the log.",
    ),
    "tidemark_billing_turn_seconds": MetricSpec(
        "gauge",
        "When the period-close controller last ended a turn, Unix time; from the sink that owns partition 0, as the "
        "other `tidemark_billing` gauges. Over a few minutes old: Stripe, SQL or the log does not answer.",
    ),
    "tidemark_billing_drafts": MetricSpec(
        "gauge", "Draft invoices with metered usage that Stripe finalizes within TIDEMARK_CLOSE_LEAD_S."
    ),
    "tidemark_billing_late_drafts": MetricSpec(
        "gauge",
        "Draft invoices that Stripe finalizes within five minutes although usage of their customers is not reported. "
        "Above 0: the usage will be an invoice item; find out what delays the sink or the worker.",
    ),
    "tidemark_billing_unequal_drafts": MetricSpec(
        "gauge", "Draft invoices whose usage at Stripe has another sum than what Stripe took from us; see the log."
    ),
    "tidemark_billing_invoices": MetricSpec(
        "gauge",
        "Finalized invoices by state. `waiting`: reports have no outcome. `unbilled`: an invoice item is to come. "
        "`held`: a person must look, `tidemark billing bills --unbilled` says why.",
        ("state",),
    ),
    "tidemark_billing_not_sold": MetricSpec(
        "gauge",
        "Customers and meters with usage that no subscription item bills, as of the last look at all customers; absent "
        "before it. `tidemark billing bills --unbilled` names them.",
    ),
    "tidemark_mirror_events": MetricSpec(
        "gauge",
        "Events of Stripe that this process has committed, by outcome. `held`: link the customer to an account. "
        "`quarantined`: see `tidemark quarantine list`.",
        ("outcome",),
    ),
    "tidemark_mirror_fetches": MetricSpec(
        "gauge",
        "Objects that this process has fetched at Stripe, by result. `unanswered` grows: Stripe does not answer. "
        "`unreadable`: this version cannot read Stripe's answer.",
        ("result",),
    ),
    "tidemark_mirror_delay_seconds": MetricSpec(
        "gauge", "Time from the creation of the last event at Stripe to its commit. Grows: the role is behind."
    ),
    "tidemark_mirror_held_events": MetricSpec(
        "gauge",
        "Events of customers that belong to no account, up to 10 000; from the process that owns partition 0. Link "
        "the customers: `tidemark billing status` names them.",
    ),
    "tidemark_mirror_set_aside_events": MetricSpec(
        "gauge",
        "Events one of whose objects could not be fetched, read or stored, up to 10 000; from the process that owns "
        "partition 0. The role reads them again every hour; `tidemark quarantine list` says why.",
    ),
    "tidemark_mirror_set_aside_accounts": MetricSpec(
        "gauge",
        "Accounts whose entitlements this process could not compute, up to 10 000. They keep what they have, and are "
        "tried again every 15 minutes; the log of the role says why.",
    ),
    "tidemark_mirror_unreadable_accounts": MetricSpec(
        "gauge",
        "Accounts that this process found to have a subscription with prices that no catalog made, and none of a plan, "
        "up to 10 000. What such a subscription gave before stays; `tidemark catalog drift` names the prices.",
    ),
    "tidemark_mirror_oldest_event_age_seconds": MetricSpec(
        "gauge",
        "For how long the oldest event that is being processed is in the log; 0 if none is. Grows: Stripe or SQL does "
        "not answer, and nothing is committed.",
    ),
    "tidemark_mirror_gaps": MetricSpec(
        "gauge",
        "Spans of events that were gone before this process could read them: from the `log`, or from Stripe's `list`, "
        "which has 30 days. Above 0: run `tidemark billing resync`.",
        ("of",),
    ),
    "tidemark_mirror_overlaps": MetricSpec(
        "gauge",
        "Pairs of subscriptions that bill one meter twice, or meters in different periods, from now on; from the "
        "process that owns partition 0. Above 0: cancel one of the two; `tidemark billing audit` names them.",
    ),
    "tidemark_mirror_due_bindings": MetricSpec(
        "gauge",
        "Bindings that wait to be sent to `usage.events`; from the process that owns partition 0. Stays above 0: the "
        "log or Redis does not answer.",
    ),
    "tidemark_mirror_due_binding_age_seconds": MetricSpec(
        "gauge",
        "For how long the oldest binding waits to be sent; absent if none waits. Grows: accounts go on with the payer "
        "from before.",
    ),
    "tidemark_mirror_recovered_events": MetricSpec(
        "gauge",
        "Events that did not come as a webhook and were found in Stripe's list by this process. Grows: webhooks are "
        "lost.",
    ),
    "tidemark_mirror_walked_seconds": MetricSpec(
        "gauge",
        "Up to when Stripe's list of events was read, Unix time. Over half an hour old: Stripe does not answer.",
    ),
    "tidemark_mirror_canary_heard_seconds": MetricSpec(
        "gauge", "When an event of the canary customer last came as a webhook, Unix time; absent if never."
    ),
    "tidemark_mirror_canary_silent": MetricSpec(
        "gauge",
        "1 if the last event of the canary customer did not come as a webhook within two minutes. Look at the endpoint "
        "in Stripe's dashboard, at its secret, and at the gateway.",
    ),
    "tidemark_dunning_open_cases": MetricSpec(
        "gauge", "Subscriptions whose payments failed, by the state of their case (docs/dunning.md).", ("state",)
    ),
    "tidemark_dunning_canceled_cases": MetricSpec(
        "gauge",
        "Open cases of subscriptions that Stripe canceled because the payments failed. Above 0: Stripe's setting takes "
        "subscriptions that a payment would have kept.",
    ),
    "tidemark_dunning_judged_cases": MetricSpec(
        "gauge", "Cases whose first failure was 30 to 60 days ago: those of which the recovered ratio is."
    ),
    "tidemark_dunning_recovered_ratio": MetricSpec(
        "gauge",
        "The part of the judged cases that was paid within 30 days of the first failure, by number (`cases`) and by "
        "money (the currency). Below 0.3: mails do not arrive, or the page does not work.",
        ("of",),
    ),
    "tidemark_trials": MetricSpec("gauge", "Trials by state (docs/trials.md).", ("state",)),
    "tidemark_trials_flagged": MetricSpec(
        "gauge", "Running trials whose card had a trial before, where the catalog lets them run."
    ),
    "tidemark_duplicate_subscriptions": MetricSpec(
        "gauge",
        "Second subscriptions of an account by state, until a person settles them. Above 0: "
        "docs/runbook/duplicate-subscriptions.md.",
        ("state",),
    ),
    "tidemark_unfinalized_invoices": MetricSpec(
        "gauge",
        "Drafts that Stripe could not make final, such as for want of an address for the tax: nobody pays them. Above "
        "0: docs/runbook/unfinalized-invoices.md.",
    ),
    "tidemark_changes_differing": MetricSpec(
        "gauge",
        "Changes of plans, accepted in the last seven days, whose invoice is not what the quote said. Above 0: "
        "docs/runbook/plan-changes.md.",
    ),
    "tidemark_changes_oldest_age_seconds": MetricSpec(
        "gauge",
        "How old the oldest change of a plan is that is accepted and not carried out; 0 if none is. Grows: Stripe does "
        "not answer.",
    ),
    "tidemark_migrations_halted": MetricSpec(
        "gauge",
        "Migrations from a flat price to a price for usage of which nothing goes on, because a figure differs. Above "
        "0: docs/runbook/migration-halted.md.",
    ),
    "tidemark_credits_stuck_orders": MetricSpec(
        "gauge",
        "Credit grants that Stripe does not have: those that it refused in the last seven days, and those that have "
        "waited for more than an hour. Above 0: docs/runbook/credit-grants.md.",
        ("state",),
    ),
    "tidemark_seats_unpaid_accounts": MetricSpec(
        "gauge", "Accounts whose paid quantity does not follow their seats yet. Stays up: docs/runbook/plan-changes.md."
    ),
    "tidemark_seats_oldest_age_seconds": MetricSpec(
        "gauge",
        "Since when the oldest of these accounts waits; 0 if none does. Grows: Stripe does not answer, or a payment is "
        "open.",
    ),
    "tidemark_notices_swept_seconds": MetricSpec(
        "gauge",
        "When the usage of all accounts was last looked at for notices, Unix time. Over a few minutes old: a store "
        "does not answer, or too many notices wait.",
    ),
    "tidemark_notices_sweep_duration_seconds": MetricSpec(
        "gauge", "How long the last look at the usage of all accounts took. Above TIDEMARK_NOTICES_SWEEP_S: raise that."
    ),
    "tidemark_notices_reached": MetricSpec(
        "gauge", "Thresholds that accounts have reached in their running periods, as of the last look."
    ),
    "tidemark_notices_waiting": MetricSpec(
        "gauge", "Notices that wait to be sent, by one channel each; at 100 000 no more are made until some are sent."
    ),
    "tidemark_notices_oldest_age_seconds": MetricSpec(
        "gauge", "How old the oldest notice is that waits; 0 if none does. Grows: a receiver does not take notices."
    ),
    "tidemark_notices_dead": MetricSpec(
        "gauge",
        "Notices that a receiver did not take for three days. Above 0: `tidemark notices list --state dead` says why, "
        "and `tidemark notices retry` sends them again.",
    ),
    "tidemark_notice_attempts_total": MetricSpec(
        "counter",
        "Attempts to send a notice, by channel and result. `failed`: the receiver did not take it. `postponed`: a "
        "store did not say whether it is still true. The other results are the states of a delivery.",
        ("channel", "result"),
    ),
}  # fmt: skip


class Metrics:
    """The metrics of one process or one app. Each object has a registry, so two apps never share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._metrics: dict[MetricName, Counter | Gauge | Histogram] = {}

    def add(self, name: MetricName, amount: float = 1, **labels: str) -> None:
        """Increase a counter by `amount`."""
        self._labelled(Counter, name, labels).inc(amount)

    def set(self, name: MetricName, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._labelled(Gauge, name, labels).set(value)

    def clear(self, name: MetricName) -> None:
        """Remove a metric with all labels, so that Prometheus does not see outdated values."""
        metric = self._metrics.pop(name, None)
        if metric is not None:
            self.registry.unregister(metric)

    def observe(self, name: MetricName, value: float, **labels: str) -> None:
        """Add an observation to a histogram."""
        self._labelled(Histogram, name, labels).observe(value)

    def render(self) -> tuple[bytes, str]:
        """The metrics in Prometheus' text format, and the content type of that format."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _labelled(self, kind: type[M], name: MetricName, labels: dict[str, str]) -> M:
        """The metric with these labels. Creates the metric at the first use."""
        spec = METRICS[name]
        if spec.kind != kind.__name__.lower():
            raise TypeError(f"{name} is a {spec.kind}, not a {kind.__name__.lower()}")
        if name not in self._metrics:
            buckets: dict[str, Any] = {"buckets": spec.buckets} if spec.buckets else {}
            self._metrics[name] = kind(name, spec.sentence, spec.labels, registry=self.registry, **buckets)
        metric = cast("M", self._metrics[name])
        return metric.labels(**labels) if labels else metric
