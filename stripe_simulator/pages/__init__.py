"""Pages for a person: the operator's pages of both modes, and the hosted pages of a payer.

Imports `resources`; only `app` imports it. Pages are whole documents from the server, with one stylesheet and without
scripts. Invariant: a form does what Stripe's routes do, in one transaction.
"""
