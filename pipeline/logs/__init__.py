"""The drivers of `schemas.log.Log`: embedded (SQLite), Kafka, and the in-memory fake.

Anybody in `pipeline` and the tests may import this package; it imports `schemas` only. The invariant it keeps: the
stream time of a partition never goes back, and an offset is returned only once it is durable.
"""
