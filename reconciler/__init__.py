"""The reconciler: recounts what was archived and reports where the views differ, and why.

Purpose: compare Redis totals, `usage_hourly`, the Stripe intents and Stripe's own sums with a recount of
`usage_events`, while traffic goes on. Only `pipeline` may import it; the stores are passed in as protocols of
`schemas`. Of `aggregators` it imports `codec` and `quantities`, for the texts of values, and `report_records` and
`stripe_sums`, for the records of `billing.reports`. The invariant it keeps: it shares no counting code with the fold
(periods are cut again in `boundaries`, quantities are counted by the reader's own SQL); it only reads; and values that
were not read at the same position are `in_flight` or `unchecked`, never equal.
"""
