"""What every room's tests may use: the real servers, started once, and names of their own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.servers import KafkaServer, ValkeyServer

with warnings.catch_warnings():
    # kafka-python reads its schemas with a function that Python 3.11 deprecates; warnings are errors here.
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka  # noqa: F401


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
    return f"t{uuid4().hex[:8]}-"
