"""A deterministic simulation of a whole deployment: real processors on fakes of the stores, in one thread.

The simulation injects crashes, lost answers, rebalances, zombies, losses of Redis and Stripe errors. After the faults
the deployment must come to rest, and every view must equal the oracle. `python -m simulation` and tests/simulation use
this package; the product does not import it. Invariant: the same seed gives the same run, byte for byte, in any
process. tests/simulation/README.md describes the coverage and its limits.
"""
