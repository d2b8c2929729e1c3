"""Where updates are applied: the state sources q_k(s). One source a file; adding one is one entry here."""

from statewise.states.dataset import Dataset
from statewise.states.log import Log
from statewise.states.mixture import Mixture
from statewise.states.prefix import Prefix
from statewise.states.rollout import ModelRollout
from statewise.states.source import EncodedExample, RecordedStates, Source, SourceContext

SOURCES = Source.registry
SOURCES.add(Dataset, ModelRollout, Prefix, Log, Mixture)

__all__ = ["SOURCES", "EncodedExample", "RecordedStates", "Source", "SourceContext"]
