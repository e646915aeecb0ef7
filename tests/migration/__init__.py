"""`make migration`: 340 subscriptions move from a flat price to usage, with kills and a planted difference.

Run by `python -m tests.migration`; a test runs a small one. The invariant it keeps: every invoice of every customer is
one that was written down by hand, to the cent, wherever processes ended.
"""
