"""How far the policy may move: learning rate, clip, adapter, and the terms that tie it to where it started.

The terms are KL to base, EWC, (A-)GEM and an average of the weights. One term a file; adding one is one entry here. A
term is a frozen model: its fields are its configuration, and reading them needs no torch.
"""

from statewise.locality.adapter import ADAPTERS, Adapter, Full, Lora
from statewise.locality.ema import EMA
from statewise.locality.ewc import EWC
from statewise.locality.gem import AGEM, GEM
from statewise.locality.kl_to_base import KLToBase
from statewise.locality.locality import Locality, LocalityContext, Memory

LOCALITIES = Locality.registry
LOCALITIES.add(KLToBase, EWC, GEM, AGEM, EMA)

__all__ = ["ADAPTERS", "LOCALITIES", "Adapter", "Full", "Locality", "LocalityContext", "Lora", "Memory"]
