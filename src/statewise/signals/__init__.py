"""What information is given at a state: the signals S(s). One signal a file; adding one is one entry here."""

from statewise.signals.continuation import Continuation
from statewise.signals.divergence import JSD, ForwardKL, ReverseKL
from statewise.signals.imitate import Imitate
from statewise.signals.reward import Reward
from statewise.signals.signal import Signal, Supervision

SIGNALS: dict[str, type[Signal]] = {
    "imitate": Imitate,
    "continuation": Continuation,
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "jsd": JSD,
    "reward": Reward,
}

__all__ = ["SIGNALS", "Signal", "Supervision"]
