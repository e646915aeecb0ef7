"""From Stripe to SQL: the processor of `billing.events`, the walker that finds lost events, and the outbox of bindings.

Only roles, commands and tests import this package. The invariant: what Stripe holds decides, never what an event says,
and an event's rows, its audit row and the position commit together.
"""
