"""A hub that cannot be reached is found out in seconds: datasets would knock six times, for 40 s.

What its cache holds is still found: the block merely makes datasets look nowhere else.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import datasets.config
import huggingface_hub.constants

TIMEOUT_S = 2.5


@cache
def can_reach_hub() -> bool:
    """Whether the hub's host takes a connection; asked once per process."""
    place = urlsplit(huggingface_hub.constants.ENDPOINT)
    if getproxies().get(place.scheme) and not proxy_bypass(place.hostname or ""):
        return True  # who can reach it is the proxy, which only a request can ask
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        socket.create_connection((place.hostname or "", port), timeout=TIMEOUT_S).close()
    except OSError:
        return False
    return True


@contextmanager
def offline_without_hub() -> Iterator[None]:
    """Where the hub cannot be reached, datasets and its client work offline inside; afterwards all is as it was."""
    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    is_offline = any(before) or not can_reach_hub()
    for place in places:
        place.HF_HUB_OFFLINE = is_offline
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
