"""Models: loading, scoring of training states, and the rollout engine."""
