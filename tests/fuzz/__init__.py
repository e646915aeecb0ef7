"""`make fuzz`: broken and odd inputs at every door, and requests of every kind to every route of the gateway.

Run by `python -m tests.fuzz`; pytest collects nothing here, but small shares run in tests. The invariant it keeps: what
was drawn from the seed says only what is sent; what must become of it says the generator's own list of valid events,
the oracle, or the OpenAPI document.
"""
