"""Where updates are applied: the state sources q_k(s). One source a file; adding one is one entry here."""

from statewise.states.dataset import Dataset
from statewise.states.rollout import ModelRollout
from statewise.states.source import EncodedExample, Source, SourceContext

SOURCES: dict[str, type[Source]] = {"dataset": Dataset, "rollout": ModelRollout}

__all__ = ["SOURCES", "EncodedExample", "Source", "SourceContext"]
