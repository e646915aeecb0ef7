"""The operator's commands as functions: health checks, meters, quarantine, reconciliation, rebuilds.

Imported by `pipeline.cli` and the demo. Invariant: a command that reads writes nothing; a command that writes returns a
text that names the written records.
"""
