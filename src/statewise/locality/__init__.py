"""How far the policy may move: learning rate, gradient clip, full weights or a low-rank adapter."""
