"""Real services that a test worker starts itself, one fixture module each.

Only `tests` imports it. The invariant it keeps: a service starts once per worker, on loopback, and never outlives it.
"""
