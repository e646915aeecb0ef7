"""The live view in Redis or Valkey: marks, totals, cells, outbox and the checkpoint they commit with (S4).

Imported by the pipeline. The invariant (I2): a partition's keys change in one MULTI guarded by WATCH on its
checkpoint, or not at all.
"""
