"""Notices: what accounts are warned about, found by a sweep of the live view, kept as rows, and delivered.

The role `notifier` and the commands import it. A notice is a row before it is sent, is checked for being still true
when it is sent, and is sent while no lock is held: at least once, always under one id.
"""
