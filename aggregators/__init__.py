"""The pure core: from records and state to changes, by functions alone.

Imported by sinks, the reconciler and the pipeline; imports `schemas` only. The invariant it keeps (I6, I7): the
same state and records give the same changes, to the byte, in every process; so there is no I/O, clock,
randomness, logging or asyncio in here.

The way of a flush: `scan` (decode, check, evaluate meters) → `plan` (periods and lateness, once the account
states are read) → `fold` (dedup and aggregate, once marks, totals and cells are read) → `Changes`.
"""
