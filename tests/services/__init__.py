"""Real services that the test session starts itself, one fixture module each.

Only `tests` imports it. The invariant it keeps: a service starts once per session, on loopback, and never outlives it.
"""
