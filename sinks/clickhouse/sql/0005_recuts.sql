-- As before, without the cells that a restatement has emptied: those of a period that ends where it begins.
CREATE OR REPLACE VIEW usage AS
SELECT
    account,
    meter,
    fromUnixTimestamp64Milli(period_start_ms, 'UTC') AS period_start,
    fromUnixTimestamp64Milli(period_end_ms, 'UTC') AS period_end,
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
            kind = 'latest', argMax(value_minor, (latest_time_us, latest_position)),
            sum(value_minor)
        ) AS merged_minor,
        max(arrival_bucket_ms) AS last_arrival_ms
    FROM usage_hourly FINAL
    WHERE usage_hourly.period_end_ms > usage_hourly.period_start_ms
    GROUP BY account, meter, period_start_ms, hour_ms, dimensions
) AS cells;
