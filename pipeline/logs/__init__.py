"""The drivers of `schemas.log.Log`: embedded (SQLite), Kafka, and the in-memory fake.

All of `pipeline` and the tests may import this package. The invariant it keeps: the stream time of a partition never
goes back, and `append` returns an offset only after the record is durable.
"""
