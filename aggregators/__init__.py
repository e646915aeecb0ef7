"""The pure core: functions that turn records and state into changes.

Imported by sinks, the reconciler and the pipeline; imports `schemas` only. The invariant it keeps (I6, I7): the same
state and records give the same changes, to the byte, in every process. So this package has no I/O, clock, randomness,
logging or asyncio.

The steps of a flush: `scan` (decode, check, evaluate meters) → `place` and `plan` (periods and lateness, after the
account states are read) → `fold` (dedup and aggregate, after marks, totals and cells are read) → `Changes`.
"""
