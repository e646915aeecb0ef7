"""The services of a deployment on one machine, for `tidemark dev`, the demo and the tests, and their supervision.

Imported by `pipeline.cli`, the demo, benchmarks and tests. Invariant: a service ends with the process that started the
service, and its data survives kill -9.
"""

# A running `tidemark dev` writes this file into its data directory for commands in other terminals.
DEV_FILE = "dev.json"
