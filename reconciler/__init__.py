"""The reconciler: recounts the archived events and reports which views differ, and why.

It compares Redis totals, `usage_hourly`, the intents and Stripe's sums with a recount of `usage_events`, Stripe's
invoices with the reports, and the mirror with Stripe's lists, while traffic goes on. Only `pipeline` may import this
package; the stores are passed in as protocols of `schemas`. Of `aggregators`, it imports `codec` and `quantities` for
the texts of values, `report_records` and `stripe_sums` for the records of `billing.reports`, and `rating` for prices,
whose results Stripe's invoices check. Its invariants: it shares no counting code with the fold (`boundaries` has its
own periods, the reader has its own SQL), none with the measurer (`measured_pieces` has its own areas), and none with
the mirror; it only reads; values that were not read at the same
position are never equal, but `in_flight` or `unchecked`.
"""
