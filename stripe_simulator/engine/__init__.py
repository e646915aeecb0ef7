"""The money arithmetic of Stripe Billing: pure functions over frozen values.

Only the simulator's resources and tests may import the engine. The engine imports the standard library and itself:
`tests/unit/stripe_engine/test_engine_stands_alone.py` checks that. Invariant: the engine shares no code with the
product, so a difference between both is a mistake in one of them.

Amounts are ints of the currency's minor unit. Prices are exact (`Fraction`), and each invoice line is rounded once.
Times are UTC seconds, and periods are `[start, end)`. Docstrings name the page of docs.stripe.com that states the rule.
The word "undocumented" marks the engine's own choice: only a sandbox can confirm the choice.
"""
