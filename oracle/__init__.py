"""The oracle: a simple model that calculates the correct counts.

Tests, the simulation and the demo may import the oracle, which imports only the standard library. Invariant: the oracle
shares no code with the product, so the same mistake cannot be in both.
"""
