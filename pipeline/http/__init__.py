"""The HTTP gateway: accepts events and answers live usage and usage over time.

Imported by `pipeline.roles` and commands. The invariant it keeps: the gateway answers "accepted" only after the log has
the event, and every usage answer says up to which stream time the answer is complete (I11, I12).
"""
