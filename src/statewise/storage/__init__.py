"""What lies on disk: tables, JSON and the digests of both; nothing is pickled."""
