"""Everything on one machine: the services that `tidemark dev`, the demo and the tests start, and their supervision.

Imported by `pipeline.cli`, the demo, benchmarks and tests. The invariant it keeps: a service that was started here ends
with the process that started it, and its data survives kill -9.
"""

# A running `tidemark dev` writes this file into its data directory, for commands in other terminals.
DEV_FILE = "dev.json"
