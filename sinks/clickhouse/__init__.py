"""The analytical store: ClickHouse over HTTP, or its engine in this process (chDB).

Purpose: hold every accepted event once (`usage_events`), the hourly cells, the duplicates and the control records,
answer usage questions and recount them. Only `pipeline` may import this package; the reconciler gets its reader
passed in. The invariant it keeps: every write is idempotent by identity or absolute by version, so repeating it,
in any order and by any number of writers, leaves the same rows in every view (I3, I10).
"""
