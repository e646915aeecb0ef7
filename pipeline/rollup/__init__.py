"""The counting processor and the background loops that belong to its state.

Imported by `pipeline.rebuild` and `pipeline.roles`. The invariant it keeps: position and counts are one commit (I2),
and an outbox entry is forgotten only after the other store has confirmed it.
"""
