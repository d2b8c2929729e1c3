"""The one training loop: build, score, reduce, update, record, checkpoint. Every method is a configuration of it."""
