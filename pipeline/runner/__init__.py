"""Runs processors on Faust: assigns partitions, delivers records in order, acknowledges after the commit.

Imported by `pipeline.roles` only; the one package that imports Faust. The invariant it keeps: reading starts at the
processor's start offset, and a record is acknowledged only after the step with the record has returned (I2).
"""
