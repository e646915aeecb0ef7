"""Credits: grants at Stripe, packs that are bought, and balances."""
