"""Which engine runs the model: the one that is set, or the fastest of those that are installed and agree with the original.

A model's folder has what Keras reads. What other engines read is converted from it once, by TensorFlow, into the cache folder,
under the digest of the weights; files that `demographics export` wrote beside the weights are taken instead. Trials run in
processes of their own (trial.py): what they load is gone afterwards, and one that crashes harms nothing. What they found is
kept in the cache for as long as packages, processor and settings stay the same. Whatever is opened is compared with the golden
batch again, in the process that serves.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog
from msgspec import Struct

from inference.golden import Agreement, golden_digest, judge, read_golden
from inference.predictor import NamedEngine, core_count
from pipeline import telemetry as metrics
from pipeline.errors import ConfigError
from pipeline.manifest import ENGINES, EngineName, load_manifest, verified_weights
from pipeline.telemetry import Telemetry

log = structlog.get_logger()

Progress = Callable[[str], None]

TRIAL_TIMEOUT_S: Final = 300.0
FILES: Final[dict[EngineName, str]] = {"litert": "model_int8.tflite", "onnxruntime": "model.onnx"}
"""What an engine reads where that is not the Keras file itself; named as `demographics export` names it."""
_PACKAGES: Final[dict[EngineName, tuple[str, ...]]] = {
    "tensorflow": ("tensorflow", "keras"),
    "onnxruntime": ("onnxruntime",),
    "litert": ("ai_edge_litert",),
    "jax": ("jax", "keras"),
}
_DISTRIBUTIONS: Final = ("tensorflow", "keras", "onnxruntime", "ai-edge-litert", "jax", "tf2onnx")
_CACHE_VERSION: Final = 1  # raise it where the same model would be converted or measured otherwise


class Trial(Struct, frozen=True):
    """What came of trying an engine: its agreement and speed, or what is in its way."""

    engine: EngineName
    agreement: Agreement | None = None
    agrees: bool = False
    faces_per_s: float = 0.0  # in batches of max_batch
    single_faces_per_s: float = 0.0  # one at a time
    problem: str = ""


class TrialRequest(Struct, frozen=True):
    """What trial.py is asked."""

    engine: EngineName
    folder: str
    files: str  # folder of what is converted
    threads: int
    max_batch: int
    convert: tuple[EngineName, ...] = ()  # for these engines, before the measurement
    measure: bool = True


def installed(name: EngineName) -> bool:
    """Tell whether the packages of an engine are there."""
    return all(find_spec(package) is not None for package in _PACKAGES[name])


def runnable(name: EngineName, folder: Path) -> bool:
    """Tell whether an engine is installed and what it reads is there, or could be converted.

    Ingest has ONNX Runtime for its detector alone: its image holds no network for it.
    """
    if not installed(name) or name not in FILES or (installed("tensorflow") and _convertible(name)):
        return installed(name)
    with _files(folder) as files:
        return open_file(name, folder, files) is not None


def cache_folder() -> Path:
    """Give the user's cache folder for this program; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "demographics"


# ── opening ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def open_file(name: EngineName, folder: Path, files: Path) -> bytes | None:
    """Read what engine *name* wants, from the model's folder or else from *files*; None where neither has it."""
    for place in (folder, files):
        path = place / FILES[name]
        if path.is_file():
            return path.read_bytes()
    return None


def construct(name: EngineName, folder: Path, files: Path, *, threads: int = 0) -> NamedEngine:
    """Open an engine whose file is there. Raises ConfigError."""
    manifest = load_manifest(folder)
    verified_weights(folder, manifest)
    if not installed(name):
        raise ConfigError(f"engine {name}: {' and '.join(_PACKAGES[name])} must be installed; docs/engines.md says how")
    if name == "tensorflow":
        from inference.tensorflow_predictor import TensorFlowPredictor  # noqa: PLC0415  each imports its own runtime

        return TensorFlowPredictor(folder, threads=threads)
    if name == "jax":
        from inference.jax_predictor import JaxPredictor  # noqa: PLC0415

        return JaxPredictor(folder)
    data = open_file(name, folder, files)
    if data is None:
        raise ConfigError(f"engine {name}: there is no {FILES[name]} of model {folder}, and none could be converted")
    try:
        if name == "litert":
            from inference.litert_predictor import LitertPredictor  # noqa: PLC0415

            return LitertPredictor(data, manifest, threads=threads)
        from inference.onnxruntime_predictor import OnnxruntimePredictor  # noqa: PLC0415

        return OnnxruntimePredictor(data, manifest, threads=threads)
    except ConfigError as error:
        raise ConfigError(f"engine {name}, model {folder}: {error}") from None


def open_engine(name: EngineName, folder: Path, *, threads: int = 0, say: Progress = lambda _: None) -> NamedEngine:
    """Open one engine, converting what it reads where that is missing, and compare it. Raises ConfigError.

    A folder without a golden batch (another program's, an older export) can be run by TensorFlow and JAX only: nothing else could
    be trusted.
    """
    manifest = load_manifest(folder)
    verified_weights(folder, manifest)
    golden = read_golden(folder, manifest)
    if golden is None and name in FILES:
        raise ConfigError(
            f"engine {name}: model {folder} has no golden batch to compare it with; write the folder anew: "
            f"demographics export --model {folder} -o NEW_FOLDER --formats none"
        )
    with _files(folder) as files:
        if name in FILES and installed(name) and open_file(name, folder, files) is None:
            say(f"converting the model for {name}, once")
            request = TrialRequest("tensorflow", str(folder), str(files), threads, 1, convert=(name,), measure=False)
            if (trial := _ask(request)).problem:
                raise ConfigError(f"engine {name}: the model could not be converted: {trial.problem}")
        say(f"loading the model into {name}")
        engine = construct(name, folder, files, threads=threads)
    if golden is not None:
        found = judge(engine, golden, manifest)
        if not found.within(engine.tolerance):
            raise ConfigError(disagreement(engine, found))
    return engine


def disagreement(engine: NamedEngine, found: Agreement) -> str:
    """Say how far an engine is from the golden batch, and what it may be."""
    allowed = engine.tolerance
    return (
        f"engine {engine.name}: disagrees with the model's golden batch: {found.age_mean_difference:.3f} years and "
        f"{found.probability_mean_difference:.4f} in probability on average, {allowed.age_years:g} and {allowed.probability:g} "
        "are allowed; choose another engine, or export the model again"
    )


# ── choosing ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def load_engine(
    wanted: Literal["auto"] | EngineName,
    folder: Path,
    *,
    threads: int = 0,
    max_batch: int = 32,
    telemetry: Telemetry | None = None,
    say: Progress = lambda _: None,
) -> NamedEngine:
    """Open the engine that is *wanted* for the model in *folder*, warm.

    A service has *telemetry*, and tells of it there and in its log. Raises ConfigError.
    """
    trials: Sequence[Trial] = ()
    if wanted == "auto":
        trials = try_engines(folder, threads=threads, max_batch=max_batch, say=say)
        engine = _fastest(trials, folder, threads, say)
    else:
        engine = open_engine(wanted, folder, threads=threads, say=say)
    warm_up = getattr(engine, "warm_up", None)
    if warm_up is not None:
        warm_up(lambda done, of: say(f"warming up {engine.name} ({done} of {of} batch sizes)"))
    if telemetry is not None:
        _tell(engine, trials, telemetry)
    return engine


def _fastest(trials: Sequence[Trial], folder: Path, threads: int, say: Progress) -> NamedEngine:
    problems = []
    for trial in ranked(trials):
        try:
            return open_engine(trial.engine, folder, threads=threads, say=say)
        except ConfigError as error:  # it could be opened when it was tried; the next may still be
            problems.append(str(error))
            log.warning("engine_failed", engine=trial.engine, detail=str(error))
    problems += [f"engine {trial.engine}: {trial.problem}" for trial in trials if trial.problem]
    raise ConfigError(problems or [f"model {folder}: no engine is installed; run `make setup`"])


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """List those that agree, fastest in full batches first: full batches are what there is when it matters."""
    return sorted((trial for trial in trials if trial.agrees), key=lambda trial: -trial.faces_per_s)


def try_engines(
    folder: Path, *, threads: int, max_batch: int, say: Progress = lambda _: None, anew: bool = False
) -> tuple[Trial, ...]:
    """Try every engine that is installed, or read what came of it the last time. Raises ConfigError.

    A folder without a golden batch is TensorFlow's, unmeasured.
    """
    manifest = load_manifest(folder)
    verified_weights(folder, manifest)
    if read_golden(folder, manifest) is None:
        log.warning("engine_not_chosen", model=str(folder), detail="no golden.npz: nothing to compare engines with")
        return (Trial("tensorflow", agrees=True),)
    names = [name for name in ENGINES if installed(name)]
    with _files(folder) as files:
        kept = files / f"trials-{_fingerprint(threads, max_batch)}.json"
        if not anew and (known := _read_trials(kept)):
            return known
        trials = []
        for name in names:  # TensorFlow is first: it converts for the others while it has the model
            say(f"trying {name}: once, for this machine")
            missing = tuple(
                other for other in FILES if name == "tensorflow" and installed(other) and _convertible(other)
                and open_file(other, folder, files) is None
            )  # fmt: skip
            trials.append(
                _ask(TrialRequest(name, str(folder), str(files), threads, max_batch, convert=missing))
                if name not in FILES or open_file(name, folder, files) is not None
                else Trial(name, problem=f"there is no {FILES[name]}, and what converts to it is not installed")
            )
        _write(kept, msgspec.json.encode(trials))
        return tuple(trials)


def _convertible(name: EngineName) -> bool:
    return name != "onnxruntime" or find_spec("tf2onnx") is not None


def _tell(engine: NamedEngine, trials: Sequence[Trial], telemetry: Telemetry) -> None:
    chosen = next((trial for trial in trials if trial.engine == engine.name), None)
    log.info(
        "engine_chosen",
        engine=engine.name,
        model=engine.manifest.digest,
        faces_per_s={trial.engine: round(trial.faces_per_s) for trial in trials if trial.faces_per_s},
        age_mean_difference=round(chosen.agreement.age_mean_difference, 4) if chosen and chosen.agreement else None,
        not_available={trial.engine: trial.problem for trial in trials if trial.problem},
    )
    for name in ENGINES:
        telemetry.set(metrics.ENGINE, float(name == engine.name), engine=name)
    for trial in trials:
        if trial.agreement is not None:
            telemetry.set(metrics.ENGINE_RATE, trial.faces_per_s, engine=trial.engine)
            telemetry.set(metrics.ENGINE_DIFFERENCE, trial.agreement.age_mean_difference, engine=trial.engine)


# ── what is kept ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _files(folder: Path) -> Iterator[Path]:
    """Give the cache's folder for a model, held alone; one that goes again where nothing can be written."""
    manifest = load_manifest(folder)
    golden = golden_digest(folder) if (folder / "golden.npz").is_file() else "none"
    path = cache_folder() / "engines" / f"{manifest.digest}-{golden}-{_CACHE_VERSION}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("w")
    except OSError:
        if any((path / file).is_file() for file in FILES.values()):  # made beforehand, as in an image: read only
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="demographics-engines-") as passing:
            yield Path(passing)
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two services that start together convert once
        yield path


def _fingerprint(threads: int, max_batch: int) -> str:
    """Tell this machine, these packages and these settings from any others."""
    known: list[object] = [threads or core_count(), max_batch, os.cpu_count(), _processor()]
    known.append(sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*")))
    for name in _DISTRIBUTIONS:
        try:
            known.append((name, version(name)))
        except PackageNotFoundError:
            known.append((name, None))
    return hashlib.sha256(repr(known).encode()).hexdigest()[:12]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _read_trials(path: Path) -> tuple[Trial, ...]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Trial, ...])
    except (OSError, msgspec.MsgspecError):
        return ()


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; where nothing can be written, the next start finds it out again."""
    part = path.with_suffix(f".{os.getpid()}")
    try:
        part.write_bytes(data)
        part.rename(path)
    except OSError:
        log.info("cache_not_written", path=str(path))


def _ask(request: TrialRequest) -> Trial:
    """Have a process of its own do what *request* says."""
    environment = dict(os.environ)
    environment.pop("KERAS_BACKEND", None)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "inference.trial"], input=msgspec.json.encode(request), capture_output=True,
            env=environment, timeout=TRIAL_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Trial(request.engine, problem=f"not done after {TRIAL_TIMEOUT_S:g} s")
    try:
        return msgspec.json.decode(done.stdout.splitlines()[-1] if done.stdout else b"", type=Trial)
    except msgspec.MsgspecError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        return Trial(request.engine, problem=f"ended with status {done.returncode}: {last[0][:300]}")
