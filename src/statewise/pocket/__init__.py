"""The pocket world and the model pretrained on it: a real language model small enough for a CPU."""
