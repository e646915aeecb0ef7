-- Identity is (account, id). The partition key is made of the sort key, so two arrivals of one event always meet,
-- whatever their times; version = bitNot(position) makes the lowest position, the first arrival, win.
-- `time_us` and `stream_time_ms` exist in inserts only: integers parse faster than dates and cannot be misread.
CREATE TABLE IF NOT EXISTS usage_events
(
    account String,
    id String,
    type LowCardinality(String),
    source LowCardinality(String),
    time_us Int64 EPHEMERAL,
    time DateTime64(6, 'UTC') DEFAULT fromUnixTimestamp64Micro(time_us, 'UTC') CODEC(Delta, LZ4),
    data String,
    partition UInt16,
    position UInt64 CODEC(Delta, LZ4),
    stream_time_ms Int64 EPHEMERAL,
    stream_time DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(stream_time_ms, 'UTC') CODEC(Delta, LZ4),
    payload_hash UInt64 MATERIALIZED cityHash64(toString(type), toString(source), data),
    version UInt64 MATERIALIZED bitNot(position),
    INDEX time_span time TYPE minmax GRANULARITY 4
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY cityHash64(account) % 16
ORDER BY (account, id);

-- Every arrival after the first, by where it stands in the log.
CREATE TABLE IF NOT EXISTS usage_duplicates
(
    account String,
    id String,
    type LowCardinality(String),
    source LowCardinality(String),
    time_us Int64 EPHEMERAL,
    time DateTime64(6, 'UTC') DEFAULT fromUnixTimestamp64Micro(time_us, 'UTC'),
    data String,
    partition UInt16,
    position UInt64,
    stream_time_ms Int64 EPHEMERAL,
    stream_time DateTime64(3, 'UTC') DEFAULT fromUnixTimestamp64Milli(stream_time_ms, 'UTC'),
    payload_hash UInt64 MATERIALIZED cityHash64(toString(type), toString(source), data)
)
ENGINE = ReplacingMergeTree
ORDER BY (partition, position);

-- One row per cell and version; the highest version is the cell's absolute value.
-- A period is known by its start; a binding may cut its end while it runs, so the end is as last known.
-- Periods may reach beyond the years DateTime64 can show, so their bounds are kept as integers as well.
CREATE TABLE IF NOT EXISTS usage_hourly
(
    account String,
    meter LowCardinality(String),
    period_start_ms Int64,
    period_end_ms Int64,
    hour_ms Int64,
    dimensions String,
    arrival_bucket_ms Int64,
    aggregation LowCardinality(String),
    scale UInt8,
    value_minor Int128,
    latest_time_us Int64,
    latest_position UInt64,
    partition UInt16,
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(fromUnixTimestamp64Milli(arrival_bucket_ms, 'UTC'))
ORDER BY (meter, account, hour_ms, period_start_ms, dimensions, arrival_bucket_ms);

CREATE TABLE IF NOT EXISTS control_log
(
    partition UInt16,
    position UInt64,
    kind LowCardinality(String),
    account String,
    stream_time_ms Int64,
    value String
)
ENGINE = ReplacingMergeTree
ORDER BY (partition, position);

-- How far usage_events reaches, written after the rows it covers; it only moves forward.
CREATE TABLE IF NOT EXISTS archive_positions
(
    partition UInt16,
    next_offset UInt64,
    stream_time_ms Int64,
    log_id String
)
ENGINE = ReplacingMergeTree(next_offset)
ORDER BY partition;

-- How far usage_hourly reaches; it only moves forward.
CREATE TABLE IF NOT EXISTS relay_positions
(
    partition UInt16,
    next_offset UInt64,
    stream_time_ms Int64
)
ENGINE = ReplacingMergeTree(next_offset)
ORDER BY partition;
