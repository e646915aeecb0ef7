"""Stripe's billing meters: sends usage to Stripe and reads Stripe's sums and error reports.

Only the pipeline imports this package; in it, only `client` imports the `stripe` library. The invariant: one identifier
is one meter event, so an event that is repeated within Stripe's window of identifiers counts once.
"""
