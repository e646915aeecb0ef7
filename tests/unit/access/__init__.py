"""Tests of entitlements and checks."""
