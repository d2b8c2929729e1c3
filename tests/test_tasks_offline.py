"""Without the hub, its absence is noticed at once and leaves no trace."""

from __future__ import annotations

import socket
import time

import datasets.config
import huggingface_hub.constants
import pytest

from statewise.errors import UsageError
from statewise.tasks import offline
from statewise.tasks.load import load_task


@pytest.fixture
def online(monkeypatch):
    """Settings of a machine that believes it is online."""
    for place in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
    offline.can_reach_hub.cache_clear()
    yield
    offline.can_reach_hub.cache_clear()


def test_a_hub_out_of_reach_is_an_error_within_seconds(online, monkeypatch, tmp_path):
    def refuse(address, timeout):
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    began = time.monotonic()
    with pytest.raises(UsageError, match=r"'openai/gsm8k' cannot be loaded.* give local copies with --data"):
        load_task("gsm8k")
    assert time.monotonic() - began < 5
    assert datasets.config.HF_HUB_OFFLINE is False
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_a_hub_in_reach_is_left_to_datasets(online, monkeypatch):
    class Connection:
        def close(self):
            pass

    asked = []
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: asked.append(address) or Connection())
    with offline.offline_without_hub(), offline.offline_without_hub():
        assert datasets.config.HF_HUB_OFFLINE is False
    assert asked == [("huggingface.co", 443)]


def test_whoever_asked_for_offline_stays_offline(online, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("no need to ask"))
    with offline.offline_without_hub():
        assert huggingface_hub.constants.HF_HUB_OFFLINE is True
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False
