"""A run folder: what is written into it and when, read back, checked against its digests, set right after damage."""
