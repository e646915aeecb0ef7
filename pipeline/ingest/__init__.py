"""The two processors that do not count, router and archive, and the check of a processor's start offset.

Imported by `pipeline.rollup`, `pipeline.rebuild` and `pipeline.roles`. The invariant it keeps: no position moves
past a record before all effects of the record are durable (I1).
"""
