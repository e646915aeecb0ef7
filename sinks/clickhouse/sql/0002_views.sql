-- What analysts read: nothing here counts a row twice, whatever has been merged so far.
CREATE OR REPLACE VIEW events AS
SELECT
    account,
    id,
    type,
    source,
    time,
    data,
    stream_time,
    greatest(0, dateDiff('second', time, stream_time)) AS late_s,
    partition,
    bitShiftRight(position, 16) AS log_offset,
    position,
    payload_hash
FROM usage_events FINAL;

-- One row per account, meter, period, hour and dimensions: arrival buckets are merged by the meter's aggregation.
-- A later binding may end a period earlier or later: a row keeps the end that was known when its usage was counted.
-- A restatement empties a cell by giving it a period that ends where it begins; such cells are left out.
CREATE OR REPLACE VIEW usage AS
SELECT
    account,
    meter,
    fromUnixTimestamp64Milli(period_start_ms, 'UTC') AS period_start,
    fromUnixTimestamp64Milli(period_end_ms, 'UTC') AS period_end_when_counted,
    fromUnixTimestamp64Milli(hour_ms, 'UTC') AS hour,
    JSONExtract(cells.dimensions, 'Map(String, String)') AS dimensions,
    kind AS aggregation,
    toDecimal256(merged_minor, 12) / toDecimal256(concat('1', repeat('0', digits)), 0) AS value,
    merged_minor AS value_minor,
    digits AS scale,
    fromUnixTimestamp64Milli(last_arrival_ms, 'UTC') AS last_arrival_hour
FROM
(
    SELECT
        account,
        meter,
        period_start_ms,
        argMax(usage_hourly.period_end_ms, version) AS period_end_ms,
        hour_ms,
        dimensions,
        any(aggregation) AS kind,
        any(scale) AS digits,
        multiIf(
            kind = 'max', max(value_minor),
            kind = 'min', min(value_minor),
            kind = 'latest', argMax(value_minor, (latest_time_us, latest_position)),
            sum(value_minor)
        ) AS merged_minor,
        max(arrival_bucket_ms) AS last_arrival_ms
    FROM usage_hourly FINAL
    WHERE usage_hourly.period_end_ms > usage_hourly.period_start_ms
    GROUP BY account, meter, period_start_ms, hour_ms, dimensions
) AS cells;

-- Every later arrival of an event; `conflict` marks one whose type, source or data differ from what
-- was counted: then two operations have one id, and one of them is not counted.
CREATE OR REPLACE VIEW duplicates AS
SELECT
    later.account AS account,
    later.id AS id,
    later.type AS type,
    later.source AS source,
    later.time AS time,
    later.data AS data,
    later.stream_time AS stream_time,
    first.type AS counted_type,
    first.source AS counted_source,
    first.data AS counted_data,
    first.time AS counted_time,
    first.position IS NOT NULL AND later.payload_hash != first.payload_hash AS conflict,
    later.partition AS partition,
    later.position AS position
FROM (SELECT *, payload_hash FROM usage_duplicates FINAL) AS later
LEFT JOIN
(
    SELECT account, id, type, source, data, time, toNullable(position) AS position, payload_hash FROM usage_events FINAL
) AS first
    ON first.account = later.account AND first.id = later.id;

CREATE OR REPLACE VIEW controls AS
SELECT
    partition,
    bitShiftRight(position, 16) AS log_offset,
    kind,
    account,
    fromUnixTimestamp64Milli(stream_time_ms, 'UTC') AS stream_time,
    value
FROM control_log FINAL
WHERE kind != 'tick';
