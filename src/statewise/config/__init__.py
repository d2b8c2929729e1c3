"""A study file: its schema, its grid and overrides, and where each of its keys stands."""
