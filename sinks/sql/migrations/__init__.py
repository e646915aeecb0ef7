"""Alembic's migrations of the side tables. A migration that was released never changes."""
