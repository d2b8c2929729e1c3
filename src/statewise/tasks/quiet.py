"""lm-eval and datasets write logs and progress bars to the terminal; here they are silent, errors excepted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import datasets


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Within the block lm-eval logs errors only and datasets draws no bars; afterwards all is as it was."""
    logger = logging.getLogger("lm_eval")
    level, had_bars = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()
