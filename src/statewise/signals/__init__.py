"""What information is given at a state: the signals S(s). One signal a file; adding one is one entry here."""

from statewise.signals.continuation import Continuation
from statewise.signals.divergence import JSD, ForwardKL, ReverseKL
from statewise.signals.expert import Expert
from statewise.signals.imitate import Imitate
from statewise.signals.preference import Preference
from statewise.signals.reward import Reward
from statewise.signals.signal import Signal, Supervision, WeightedSignal

SIGNALS = Signal.registry
SIGNALS.add(Imitate, Continuation, Expert, ForwardKL, ReverseKL, JSD, Reward, Preference)

__all__ = ["SIGNALS", "Signal", "Supervision", "WeightedSignal"]
