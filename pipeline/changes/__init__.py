"""Plan changes: quotes what a change of an account's subscription costs, and carries an accepted quote out at Stripe.

Imported by http, roles and commands; imports none of them. Invariant: what is done at Stripe was intended in SQL first.
"""
