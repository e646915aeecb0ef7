-- Reconciliations: one row for each run, and one for each row of its report, confirmed values included. A run's row is
-- written at its start, and replaced at its end. Instants are ms UTC; quantities are decimal texts.
CREATE TABLE IF NOT EXISTS reconciliation_runs
(
    run String,
    role LowCardinality(String),
    started_ms Int64,
    ended_ms Int64,
    from_ms Nullable(Int64),
    to_ms Nullable(Int64),
    verdict LowCardinality(String),
    differences UInt64,
    sums_due UInt64,
    sums_read UInt64,
    invoices_due UInt64,
    invoices_read UInt64,
    oldest_unread_ms Nullable(Int64),
    stripe_reads UInt64
)
ENGINE = ReplacingMergeTree
ORDER BY (started_ms, run);

CREATE TABLE IF NOT EXISTS reconciliation_findings
(
    run String,
    number UInt32,
    read_at_ms Int64,
    pair LowCardinality(String),
    cause LowCardinality(String),
    partition Nullable(UInt16),
    account String,
    meter String,
    event_name String,
    stripe_customer String,
    period_start_ms Nullable(Int64),
    period_end_ms Nullable(Int64),
    hour_ms Nullable(Int64),
    dimensions String,
    expected String,
    found String,
    items String,
    invoices String,
    detail String
)
ENGINE = ReplacingMergeTree
ORDER BY (run, number);

-- What people had repaired. The last row of a step says how it ended.
CREATE TABLE IF NOT EXISTS reconciliation_repairs
(
    step String,
    kind LowCardinality(String),
    identifier String,
    event_name String,
    stripe_customer String,
    quantity String,
    actor String,
    reason String,
    at_ms Int64,
    result String
)
ENGINE = MergeTree
ORDER BY (step, at_ms);
