"""The customer's page: one account sees its plan, usage and invoices, and changes its plan, by a signed link.

Imported by pipeline.http, which gives it an `Account` to ask; imports only aggregators and schemas. `portal.markup` and
the stylesheet are shared with the simulator's pages. Invariant: a page shows one account, the one of its token.
"""
