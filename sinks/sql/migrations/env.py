"""What Alembic runs: the migrations on the connection of `sinks.sql.schema.migrate`, in its transaction."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
