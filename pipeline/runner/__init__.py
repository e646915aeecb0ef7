"""Runs processors on Faust: assignment, delivery in order, acknowledgement after the commit.

Imported by `pipeline.roles` only; the one package that imports Faust. The invariant it keeps: reading starts at the
position that the processor names, and a record is acknowledged only after its step has returned (I2).
"""
