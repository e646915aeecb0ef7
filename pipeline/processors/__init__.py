"""What turns records into durable changes: rollup, archive, router, drains, Stripe sender.

They know no Faust: log, stores and time are protocols passed in, so a simulation drives the very same code. The
invariant (I2): a step returns only after its commit.
"""
