"""What accounts may do: computed when something happens to an account, and answered from memory."""
