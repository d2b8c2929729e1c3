"""What other tools wrote of their evaluations, read as item scores; and the reverse, lm-eval's files of ours."""
