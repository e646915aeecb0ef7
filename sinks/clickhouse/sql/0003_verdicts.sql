-- Whether an event came later than the dedup window; then it counts where its verdict stands, or not at all.
ALTER TABLE usage_events ADD COLUMN IF NOT EXISTS parked UInt8 DEFAULT 0;

-- The first verdict on the account's parked event at a position: version = bitNot(position of the verdict).
CREATE TABLE IF NOT EXISTS verdicts
(
    partition UInt16,
    position UInt64,
    account String,
    verdict_position UInt64,
    log_time_ms Int64,
    outcome LowCardinality(String),
    version UInt64 MATERIALIZED bitNot(verdict_position)
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (partition, position, account);
