"""Quotes and operations of plan changes."""
