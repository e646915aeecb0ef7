"""Reconciliations that are kept: opening the stores, running, recording, and the nightly turn.

Imported by the commands and by the role `auditor`. Invariants: a run is recorded before it reads Stripe, so that two
auditors do not run at once, and its reads count towards the month's budget.
"""
