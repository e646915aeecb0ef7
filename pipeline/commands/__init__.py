"""What the operator's commands do, without a terminal: health checks, meters, quarantine, reconciliation, rebuilds.

Imported by `pipeline.cli` only. The invariant it keeps: a command that looks writes nothing, and a command that writes
says what it wrote.
"""
