"""The live view in Redis or Valkey: marks, totals, cells, outbox and checkpoint (S4). Only the pipeline imports it.

The invariant (I2): a flush changes the keys of a partition in one MULTI, guarded by WATCH on the checkpoint, or it
changes nothing.
"""
