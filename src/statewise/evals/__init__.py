"""Evaluation of a policy on a task, with lm-eval underneath: one row an item, so that every comparison is paired.

Level 4. `evaluate` makes the rows; `policy_lm` is a policy as lm-eval sees a model; `likelihood` scores given texts;
`bystanders` leaves global generators and the model's mode as they were.
"""
