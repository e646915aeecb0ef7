"""Credits that customers have: grants at Stripe, packs that are bought, and what an account has left.

A pool's mode decides who keeps its credits. Nothing here draws credits: Stripe does, or the sink from the ledger.
"""
