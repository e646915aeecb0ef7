"""The drivers of `schemas.log.Log`: embedded (SQLite), Kafka, and the in-memory twin.

Anybody in `pipeline` and the tests may import this package; it imports `schemas` only.
The invariant it keeps: the log time of a partition never goes back, and an offset is returned only once it is durable.
"""
