"""The Stripe sink: sends intents of `billing.reports` as meter events and keeps the ledger of what was sent.

Imported by `pipeline.roles`. Invariant: nothing is sent before its intent and attempt are in the log (I10).
"""
