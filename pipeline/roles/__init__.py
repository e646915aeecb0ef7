"""The roles of a deployment, each one process and one module: worker, archive, router, sink, gateway.

Imported by the command line; a module imports only what its role needs, because a process that is killed should be
back soon. The invariant: a role runs until it is told to stop or something fails; then it ends with the failure's
message, and whoever started it starts it again. Nothing is retried by a half-working process.
"""
