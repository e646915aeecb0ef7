-- Copies of the live view's state, one per partition of the log and position: `number` counts their chunks, and the row
-- with `last` describes the whole and is written after them. A snapshot is dropped as a partition, which is instant.
CREATE TABLE IF NOT EXISTS snapshots
(
    partition UInt16,
    next_offset UInt64,
    name String,
    number UInt32,
    last UInt8,
    data String CODEC(ZSTD(3))
)
ENGINE = ReplacingMergeTree
PARTITION BY (partition, next_offset, name)
ORDER BY (partition, next_offset, name, last, number);
