"""The simulator of faults: the real processors, stores' fakes, router, ticker, sink and reconciler in one thread, on a
clock and a scheduler of its own, with one seed that draws everything.

Purpose: run a whole deployment through crashes, lost answers, rebalances, zombies, losses of Redis and a misbehaving
Stripe, then let it come to rest and hold every view against the oracle. `python -m simulation` and tests/simulation use
it; nothing of the product imports it. The invariant it keeps: the same seed gives the same run, byte for byte, in
any process. tests/simulation/README.md says what it covers and what it does not.
"""
