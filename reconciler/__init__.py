"""The reconciler: recounts what was archived and says where the views differ, and why.

Purpose: compare Redis totals, `usage_hourly`, the Stripe intents and Stripe's own sums with a recount of
`usage_events`, while traffic goes on. Only `pipeline` may import it; the stores are passed in as protocols of
`schemas`, and of `aggregators` it imports `fields` alone, to read stored texts. The invariant it keeps: it shares no
counting code with the fold (periods are cut again in `boundaries`, quantities are counted by the reader's own SQL),
it only reads, and what was not read at one and the same position is `in_flight` or `unchecked`, never equal.
"""
