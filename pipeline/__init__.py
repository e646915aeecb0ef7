"""The processes: roles, gateway, Faust runner, log drivers, settings and the command line.

Imports all lower packages; no package imports it. The invariant it keeps (I2): an offset is acknowledged only after the
store with the records' changes has committed.
"""
