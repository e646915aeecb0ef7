-- Whether an event came later than the dedup window; then it counts where its decision stands, or not at all.
ALTER TABLE usage_events ADD COLUMN IF NOT EXISTS deferred UInt8 DEFAULT 0;

-- The first decision on the account's deferred event at a position: version = bitNot(position of the decision).
CREATE TABLE IF NOT EXISTS dedup_decisions
(
    partition UInt16,
    position UInt64,
    account String,
    decision_position UInt64,
    stream_time_ms Int64,
    outcome LowCardinality(String),
    version UInt64 MATERIALIZED bitNot(decision_position)
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (partition, position, account);
