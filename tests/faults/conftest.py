"""What every fault test uses: a seed that is printed, and taken again from the environment."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from fake_encoder import FakeEncoder

from core.text_encoders import TEXT_ENCODERS

SEED_VARIABLE = "SHARDCLIP_FAULT_SEED"


@pytest.fixture
def fault_seed() -> int:
    """Another one each time; pytest shows the line when the test fails, and the variable replays it."""
    seed = int(os.environ.get(SEED_VARIABLE, random.SystemRandom().randrange(10**6)))
    print(f"{SEED_VARIABLE}={seed}")
    return seed


@pytest.fixture(scope="session")
def caption_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all builds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", autouse=True)
def fake_encoder() -> None:
    """`text_encoder: fake` needs no weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TEXT_ENCODERS, "fake", FakeEncoder)
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many crashes each operation was put through."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    accounts = [value for report in reports for name, value in report.user_properties if name == "crashes"]
    if accounts:
        terminalreporter.section("crashes")
        for account, _ in accounts:
            terminalreporter.line(account)
        terminalreporter.line(f"{sum(count for _, count in accounts):,} crashes")
