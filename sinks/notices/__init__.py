"""The channels of notices: a webhook, mail, and a file. Each call delivers one notice, or says that nobody took it.

Only the pipeline imports this package. The invariant: what is delivered is the notice's own bytes under its own id, so
a repeated delivery is known as one.
"""
