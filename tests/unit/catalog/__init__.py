"""The catalog: reading a file, its rules, its prices, and the plan of a change."""
