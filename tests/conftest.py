"""Fixtures for every test; the services are started by the session itself and none is skipped."""

pytest_plugins: list[str] = [
    "tests.services.clickhouse",
    "tests.services.clickhouse_stores",
    "tests.services.kafka",
    "tests.services.stripe",
    "tests.services.stripe_wire",
    "tests.services.valkey",
]
