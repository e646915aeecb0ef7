"""Alembic's migrations of the side tables. Only `sinks.sql.schema` runs the migrations, by Alembic.

The invariant: the migrations together make the tables of `sinks.sql.tables`. A migration that was released never
changes.
"""
