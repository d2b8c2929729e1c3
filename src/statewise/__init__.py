"""Post-training of language models in which the states you train on are a knob of their own."""
