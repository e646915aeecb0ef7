"""The Stripe sink: from intents in `billing.reports` to meter events, and the ledger of what was sent.

Imported by `pipeline.roles`. The invariant it keeps: nothing is sent before its intent and attempt are in the log
(I10).
"""
