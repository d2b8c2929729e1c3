"""A study at work: its worker processes, and what each does for one job. `run_study` is one `statewise run`."""
