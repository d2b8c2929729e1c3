"""A study: plan, contract, execution, store, statistics. One call of `run_study` is one `statewise run`."""
