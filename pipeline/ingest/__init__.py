"""What every reader of `usage.events` shares, and the two processors that do not count: router and archive.

Imported by `pipeline.rollup`, `pipeline.rebuild` and `pipeline.roles`. The invariant it keeps: an event that is not
counted is kept, with its reason and position, before the position moves past the event (I1).
"""
