"""What a study will do, before it does it: its jobs and what they need, what is refused, and what it will cost."""
