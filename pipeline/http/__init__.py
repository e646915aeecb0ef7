"""The HTTP gateway: events in, live usage and usage over time out.

Imported by `pipeline.roles` and commands. The invariant it keeps: an event is answered "accepted" only after the log
has the event, and every usage answer says up to which arrival it is complete (I11, I12).
"""
