"""The migrations, one module each, named by number. Only Alembic imports them, in the order of their `down_revision`.

The invariant: a migration has statements of its own, and does not use `sinks.sql.tables`, which goes on changing.
"""
