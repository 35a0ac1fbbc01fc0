"""Redis with TLS and the users of deploy/security: each service works with exactly its rights, everybody else is told why not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template
from typing import Any

import pytest
import redis

from aggregator.redis_store import RedisStore, open_store
from aggregator.service import windows_of
from aggregator.store import Position
from aggregator.windows import retentions
from pipeline.errors import TransportError
from pipeline.settings import load_settings
from tests.certificates import Certificates, make_certificates
from tests.contract.test_retention import NOW, everything
from tests.servers import RedisTlsServer

ACL = Path(__file__).parents[2] / "deploy" / "security" / "redis-users.acl"
ADMIN = "admin-of-the-test"  # who counts the commands; no such user is shipped
PASSWORDS = {"aggregator": "aggr-3gator-secret", "reader": "r3ader-secret", "operator": "0perator-secret"}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Make an authority and a certificate."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[RedisTlsServer]:
    """Run Redis with the users as they are shipped."""
    if missing := RedisTlsServer.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI tests TLS against the real Redis, but there is {missing}")
        pytest.skip(f"there is {missing}")
    users = Template(ACL.read_text()).substitute(
        {f"REDIS_{name.upper()}_PASSWORD": password for name, password in PASSWORDS.items()}
    )
    with RedisTlsServer(certificates, f"{users}user admin on >{ADMIN} ~* &* +@all\n") as running:
        yield running


Open = Callable[..., RedisStore]


@pytest.fixture
def opened(server: RedisTlsServer, certificates: Certificates) -> Iterator[Open]:
    """Open stores as one of the users, with the settings that a service would have."""
    stores: list[RedisStore] = []

    def make(
        user: str, password: str | None = None, *, ca_file: Path = certificates.authority, **settings: Any
    ) -> RedisStore:
        url = server.url(user, PASSWORDS.get(user, "") if password is None else password)
        made = load_settings({}, redis={"url": url, "ca_file": ca_file}, **settings)
        stores.append(open_store(made, windows_of(made)))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def commands(server: RedisTlsServer, certificates: Certificates) -> set[str]:
    """Name the commands that were called since the last time, and not refused."""
    client = redis.Redis.from_url(server.url("admin", ADMIN), ssl_ca_certs=str(certificates.authority))
    stats: dict[str, dict[str, int]] = client.info("commandstats")
    client.config_resetstat()
    client.script_flush()  # whoever comes next loads them itself
    client.close()
    return {
        name.removeprefix("cmdstat_") for name, said in stats.items() if said["calls"] > said.get("rejected_calls", 0)
    }


def granted(user: str) -> set[str]:
    """Name the commands that the file lets a user call."""
    (line,) = (line for line in ACL.read_text().splitlines() if line.startswith(f"user {user} "))
    return {word.removeprefix("+") for word in line.split() if word.startswith("+")}


def test_the_aggregator_does_all_of_its_work_with_exactly_its_rights(
    opened: Open, server: RedisTlsServer, certificates: Certificates
) -> None:
    """Whatever the store's port has: load, apply, read, compare; also deleting ethnicity where it is off. No right is spare."""
    commands(server, certificates)
    store, windows = opened("aggregator"), windows_of(load_settings({}))
    store.ping()
    assert store.load(3).position is None
    assert store.apply(3, everything(), start=None, end=Position(5, 1))
    assert store.positions([3]) == {3: Position(5, 1)}
    assert store.snapshot(NOW, windows).totals
    assert store.series(NOW, windows[0])
    assert store.dump(3, NOW).totals
    assert opened("aggregator", attributes=("age",)).load(3).position == Position(5, 1)
    of_the_test = {"auth", "info", "config|resetstat", "client|setinfo", "script|flush"}
    assert commands(server, certificates) - of_the_test == granted("aggregator")


def test_the_reader_reads_and_writes_nothing(opened: Open, server: RedisTlsServer, certificates: Certificates) -> None:
    """`demographics report` needs no more; a step is refused as a whole, and nothing has moved."""
    reader, windows = opened("reader"), windows_of(load_settings({}))
    commands(server, certificates)
    reader.ping()
    before = reader.snapshot(NOW, windows)
    assert reader.series(NOW, windows[0])
    assert granted("reader") <= commands(server, certificates)
    with pytest.raises(TransportError, match=r"does not let this user do that .*deploy/security/redis-users\.acl"):
        reader.apply(3, everything(), start=Position(5, 1), end=Position(6, 2))
    assert opened("aggregator").positions([3]) == {3: Position(5, 1)}
    assert reader.snapshot(NOW, windows) == before


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("aggregator", ("SET", "somebody-elses", "1")),
        ("aggregator", ("KEYS", "*")),
        ("aggregator", ("FLUSHALL",)),
        ("aggregator", ("DEL", "demographics:{3}:position")),
        ("aggregator", ("CONFIG", "GET", "*")),
        ("aggregator", ("ACL", "LIST")),
        ("reader", ("GET", "somebody-elses")),
        ("reader", ("SET", "demographics:{3}:position", "9:9")),
        ("operator", ("SET", "demographics:{3}:position", "9:9")),
        ("operator", ("FLUSHDB",)),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_one_thing_more_is_refused(
    server: RedisTlsServer, certificates: Certificates, user: str, command: tuple[str, ...]
) -> None:
    """Neither another's keys nor another's commands."""
    client = redis.Redis.from_url(server.url(user, PASSWORDS[user]), ssl_ca_certs=str(certificates.authority))
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py is typed in part
    client.close()


def test_a_wrong_password_is_told_without_it(opened: Open) -> None:
    """Nor is the default user let in."""
    for user in ("aggregator", "default"):
        with pytest.raises(TransportError, match="refuses the user name or password") as raised:
            opened(user, "hunter2").ping()
        assert "hunter2" not in str(raised.value)


def test_a_certificate_of_somebody_else_is_refused_before_the_password_is_sent(
    opened: Open, certificates: Certificates, server: RedisTlsServer
) -> None:
    """By the authority, by the name of the host, and without TLS; each says which setting to look at."""
    with pytest.raises(TransportError, match=r"certificate that is not trusted .*DEMOGRAPHICS_REDIS__CA_FILE"):
        opened("aggregator", ca_file=certificates.stranger).ping()
    named = server.url("aggregator", PASSWORDS["aggregator"]).replace("127.0.0.1", "localhost")
    made = load_settings({}, redis={"url": named, "ca_file": certificates.authority})
    store = open_store(made, windows_of(made))
    with pytest.raises(TransportError, match=r"certificate that is not trusted .*localhost"):
        store.ping()
    store.close()
    plain = load_settings(
        {}, redis={"url": server.url("aggregator", PASSWORDS["aggregator"]).replace("rediss", "redis")}
    )
    store = open_store(plain, windows_of(plain))
    with pytest.raises(TransportError, match="rediss://"):
        store.ping()
    store.close()


def test_the_operator_replays_beside_the_counts_and_drops_what_it_made(
    server: RedisTlsServer, certificates: Certificates, opened: Open
) -> None:
    """In namespaces that begin with demographics-replay-, as `demographics replay` names them; the counts it may only read."""
    fresh = RedisStore(
        server.url("operator", PASSWORDS["operator"]),
        retentions(windows_of(load_settings({}))),
        namespace="demographics-replay-20261125T120000",
        ca_file=certificates.authority,
    )
    fresh.load(3)
    assert fresh.apply(3, everything(), start=None, end=Position(5, 1))
    fresh.drop()
    assert fresh.positions([3]) == {3: None}
    fresh.close()
    assert opened("operator").positions([3]) == {3: Position(5, 1)}
