"""Stripe's billing meters: what sends usage to Stripe and what reads Stripe's own sums back.

The layers above may import it; `client` alone imports the `stripe` library. The invariant it keeps: one
identifier is one meter event, so whatever is repeated within Stripe's window counts once.
"""
