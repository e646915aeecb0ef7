"""One package per outside store: Redis, ClickHouse and Stripe, each with a fake for tests.

Only the pipeline imports these packages, and they do not import each other. The invariant: every write is idempotent by
identity or absolute by version, so a repeated write is harmless.
"""
