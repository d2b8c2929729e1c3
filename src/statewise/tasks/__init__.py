"""An lm-eval task seen as prompts, gold and verifier: one object for training and for evaluation.

Level 1. `find` lists task files without importing lm-eval (seconds); `data` reads and checks local rows; `task` is the
object; `load` builds it.
"""
