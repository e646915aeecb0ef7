"""What the installed stripe-python says about requests and responses."""
