"""The roles of a deployment: gateway, router, worker, archive, sink, mirror, notifier, auditor. Each is one process and
one module.

Imported by the command line. A module imports only what its role needs, so that a killed process restarts quickly.
Invariant: a role runs until it is stopped or something fails. Then it ends with the failure's message, and the process
supervisor restarts it. A half-working process retries nothing.
"""
