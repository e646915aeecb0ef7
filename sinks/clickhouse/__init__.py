"""The analytical store: ClickHouse over HTTP, or its engine in this process (chDB).

It stores every accepted event once (`usage_events`), the hourly cells, the duplicates and the control records, answers
usage queries and recounts usage. Only `pipeline` imports this package; it passes the reader to the reconciler. The
invariant: every write is idempotent by identity or absolute by version, so repeated writes, in any order and by any
number of writers, leave the same rows in every view (I3, I10).
"""
