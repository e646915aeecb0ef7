"""The side tables in PostgreSQL: what Stripe holds about customers, subscriptions and invoices, and whose they are.

Only the pipeline imports this package. The invariant: a transaction has all rows of a step, their audit rows and the
new position, or nothing.
"""
