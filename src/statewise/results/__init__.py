"""What was found: effects with intervals, hypotheses, and the summary that the report is made from."""
