"""What every room's tests may use: the real servers, started once, and names of their own."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from itertools import count
from uuid import uuid4

import pytest
from hypothesis import settings
from playwright.sync_api import Browser, sync_playwright

from tests.servers import KafkaServer, ValkeyServer

with warnings.catch_warnings():
    # kafka-python reads its schemas with a function that Python 3.11 deprecates; warnings are errors here.
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka  # noqa: F401

_prefixes = count()

settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """Run Apache Kafka. Whoever stops or freezes it sets it going again."""
    if missing := KafkaServer.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI tests against the real Kafka, but there is {missing}")
        pytest.skip(f"there is {missing}")
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """Run Valkey. Whoever stops or freezes it sets it going again."""
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def topic_prefix() -> str:
    """Begin the names of topics, groups and keys with this, and no other test meets them."""
    return f"t{next(_prefixes)}-{uuid4().hex[:8]}-"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Run the system's own Chromium; Playwright only drives it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        if os.environ.get("CI") == "true":
            pytest.fail("CI looks at the page with a real browser, but there is no chromium on the PATH")
        pytest.skip("there is no chromium on the PATH; Debian's package chromium brings it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()
