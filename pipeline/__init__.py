"""Processes: Faust apps and transports, processors' wiring, gateway, ticker, settings and the command line.

Imports everything below it; nothing imports it. The invariant it keeps (I2): an offset is acknowledged only after
the store that the records changed has committed.
"""
