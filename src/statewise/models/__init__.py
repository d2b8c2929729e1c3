"""Single models: where one comes from, export, evaluation, and the comparison of two."""
