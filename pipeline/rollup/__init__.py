"""The rollup's processor, and the background tasks that work on its state.

Imported by `pipeline.rebuild` and `pipeline.roles`. Invariants: position and counts are one commit (I2), and an outbox
entry is deleted only after the other store has confirmed it.
"""
