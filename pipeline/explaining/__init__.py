"""Reads what stands behind an invoice line or an event, for the API, the commands, the pages and the signed file.

May import portal and what is below. Invariant: every reading has a limit, and what was not read is said.
"""
