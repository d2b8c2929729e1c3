"""Evaluation is a bystander of training: the state it could disturb is saved and restored.

lm-eval reseeds the global generators and switches the model to evaluation mode; a run that evaluates on the way would
then differ from one that does not, and a resumed run from an uninterrupted one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from statewise.policy.load import Policy, eval_mode


@contextmanager
def preserve_rng_and_mode(policy: Policy) -> Iterator[None]:
    """Within the block the model is in evaluation mode and gradients are off.

    Afterwards python's, numpy's and torch's generators and the mode of every module are as they were.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [policy.device] if policy.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), eval_mode(policy), torch.no_grad():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
