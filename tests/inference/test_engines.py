"""Which engine is chosen: the fastest that agrees; what is in the way of one is said, and harms no other."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference import engines
from inference.engines import FILES, Trial, TrialRequest, load_engine, open_engine, ranked, runnable, try_engines
from inference.golden import GOLDEN_NAME, Agreement, Golden, agreement, judge, read_golden, write_golden
from inference.predictor import EXACT, ROUNDED, Crops, Logits, core_count
from inference.trial import run
from pipeline import telemetry as metrics
from pipeline.errors import ConfigError
from pipeline.manifest import DEFAULT_MODEL, ENGINES, EngineName, Manifest, load_manifest
from pipeline.telemetry import Telemetry
from tests.inference.conftest import MANIFEST, ToyPredictor

NEAR = Agreement(16, 0.01, 0.02, 0.001, 0.002, 1.0, 1.0)


def trial(engine: EngineName, faces_per_s: float, *, agrees: bool = True) -> Trial:
    """Say what came of an engine."""
    return Trial(engine, NEAR, agrees=agrees, faces_per_s=faces_per_s, single_faces_per_s=faces_per_s / 2)


@pytest.fixture
def manifest() -> Manifest:
    """Read how the shipped model is fed and read."""
    return load_manifest(DEFAULT_MODEL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy the shipped model."""
    return Path(shutil.copytree(DEFAULT_MODEL, tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Begin with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Asked:
    """Stands for the processes that try engines: answers from a list, and remembers what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: Sequence[Trial]) -> None:
        self.requests: list[TrialRequest] = []
        self._answers = {answer.engine: answer for answer in answers}
        monkeypatch.setattr(engines, "_ask", self)

    def __call__(self, request: TrialRequest) -> Trial:
        """Answer, having written what was to be converted."""
        self.requests.append(request)
        for name in request.convert:
            (Path(request.files) / FILES[name]).write_bytes(b"converted")
        return self._answers.get(request.engine, Trial(request.engine, problem="it is broken"))


@given(st.lists(st.tuples(st.sampled_from(ENGINES), st.floats(1, 1e5), st.booleans()), unique_by=lambda each: each[0]))
def test_the_fastest_that_agrees_is_the_first(tried: list[tuple[EngineName, float, bool]]) -> None:
    """However fast, what disagrees is not among them."""
    trials = [trial(name, rate, agrees=agrees) for name, rate, agrees in tried]
    order = ranked(trials)
    assert {each.engine for each in order} == {name for name, _, agrees in tried if agrees}
    assert [each.faces_per_s for each in order] == sorted((each.faces_per_s for each in order), reverse=True)


def test_every_installed_engine_is_tried_once_for_a_machine(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """TensorFlow first, which converts for the others; the second start reads what came of it."""
    asked = Asked(monkeypatch, [trial("tensorflow", 100), trial("litert", 600)])
    told: list[str] = []
    first = try_engines(DEFAULT_MODEL, threads=1, max_batch=32, say=told.append)
    assert [request.engine for request in asked.requests] == list(ENGINES)
    assert set(asked.requests[0].convert) == {"litert", "onnxruntime"}
    assert not any(request.convert for request in asked.requests[1:])
    assert {each.engine: each.problem for each in first if each.problem} == dict.fromkeys(
        ("onnxruntime", "jax"), "it is broken"
    )
    assert len(told) == len(ENGINES)
    assert try_engines(DEFAULT_MODEL, threads=1, max_batch=32) == first
    assert len(asked.requests) == len(ENGINES)
    try_engines(DEFAULT_MODEL, threads=1, max_batch=32, anew=True)
    try_engines(DEFAULT_MODEL, threads=2, max_batch=32)  # other settings are another question
    assert len(asked.requests) == 3 * len(ENGINES)
    assert not any(request.convert for request in asked.requests[len(ENGINES) :])


def test_engines_that_are_not_installed_are_not_tried(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Only what is there, and what can be converted with what is there."""
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "inference.engines.find_spec",
        lambda name: None if name in {"jax", "ai_edge_litert", "tf2onnx"} else there(name),
    )
    asked = Asked(monkeypatch, [trial("tensorflow", 100)])
    tried = try_engines(DEFAULT_MODEL, threads=1, max_batch=32)
    assert [request.engine for request in asked.requests] == ["tensorflow"]
    assert asked.requests[0].convert == ()
    (problem,) = [each.problem for each in tried if each.engine == "onnxruntime"]
    assert "model.onnx" in problem


def test_an_engine_without_what_it_reads_is_not_runnable(
    monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path
) -> None:
    """Ingest's image: ONNX Runtime is there for the detector, and nothing that could convert the network for it."""
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "inference.engines.find_spec",
        lambda name: None if name in {"tensorflow", "jax", "ai_edge_litert", "tf2onnx"} else there(name),
    )
    assert not any(runnable(name, DEFAULT_MODEL) for name in ENGINES)
    folder = Path(shutil.copytree(DEFAULT_MODEL, tmp_path / "model"))
    (folder / "model.onnx").write_bytes(b"exported")
    assert [name for name in ENGINES if runnable(name, folder)] == ["onnxruntime"]
    monkeypatch.setattr("inference.engines.find_spec", lambda name: None if name == "jax" else there(name))
    assert {name for name in ENGINES if runnable(name, DEFAULT_MODEL)} == {"tensorflow", "litert", "onnxruntime"}


def test_where_the_fastest_does_not_open_any_more_the_next_serves(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """It was tried on a good day; here it is damaged. The log and the metrics say which one it is."""
    Asked(monkeypatch, [trial("litert", 900), trial("onnxruntime", 800), trial("tensorflow", 100)])

    class Toy(ToyPredictor):
        name: EngineName = "tensorflow"
        tolerance = EXACT
        manifest = MANIFEST

    def opened(name: EngineName, *_: object, **__: object) -> Toy:
        if name != "tensorflow":
            raise ConfigError(f"engine {name}: damaged since")
        return Toy()

    monkeypatch.setattr(engines, "open_engine", opened)
    telemetry = Telemetry(("inference",))
    engine = load_engine("auto", DEFAULT_MODEL, telemetry=telemetry)
    assert engine.name == "tensorflow"
    value = telemetry.registry.get_sample_value
    assert {name: value(metrics.ENGINE.name, {"engine": name}) for name in ENGINES} == {
        "tensorflow": 1, "onnxruntime": 0, "litert": 0, "jax": 0
    }  # fmt: skip
    assert value(metrics.ENGINE_RATE.name, {"engine": "litert"}) == 900
    assert value(metrics.ENGINE_RATE.name, {"engine": "jax"}) is None
    assert value(metrics.ENGINE_DIFFERENCE.name, {"engine": "litert"}) == pytest.approx(0.01)


def test_no_engine_at_all_is_said_with_every_reason(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """All problems at once."""
    Asked(monkeypatch, [])
    with pytest.raises(ConfigError) as caught:
        load_engine("auto", DEFAULT_MODEL)
    assert len(caught.value.problems) == len(ENGINES)
    assert all("it is broken" in problem for problem in caught.value.problems)


def test_a_model_without_a_golden_batch_is_tensorflows(
    monkeypatch: pytest.MonkeyPatch, cache: Path, folder: Path
) -> None:
    """Nothing else could be trusted; asked for by name, it says what to do."""
    (folder / GOLDEN_NAME).unlink()
    asked = Asked(monkeypatch, [])
    assert [each.engine for each in ranked(try_engines(folder, threads=0, max_batch=32))] == ["tensorflow"]
    assert asked.requests == []
    with pytest.raises(ConfigError, match=r"no golden batch .* demographics export"):
        open_engine("litert", folder)


def test_an_engine_that_disagrees_is_not_opened(folder: Path, manifest: Manifest) -> None:
    """A file beside the weights is taken before anything is converted; this one is of another golden batch."""
    golden = read_golden(folder, manifest)
    assert golden is not None
    good = open_engine("litert", DEFAULT_MODEL)
    assert judge(good, golden, manifest).within(ROUNDED)
    with engines._files(DEFAULT_MODEL) as files:
        shutil.copy(files / FILES["litert"], folder)
    moved = golden.logits._replace(gender=golden.logits.gender[:, ::-1])
    write_golden(folder, Golden(golden.crops, moved), manifest)
    with pytest.raises(ConfigError, match=r"engine litert: disagrees .* in probability on average"):
        open_engine("litert", folder)


def test_a_cache_that_cannot_be_written_costs_time_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A read-only container: what is converted goes into a passing folder."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    asked = Asked(monkeypatch, [trial("tensorflow", 100)])
    assert [each.engine for each in ranked(try_engines(DEFAULT_MODEL, threads=1, max_batch=32))] == ["tensorflow"]
    assert not Path(asked.requests[0].files).exists()


@pytest.mark.parametrize("said", [b"", b"no JSON", b"[]"])
def test_a_trial_that_crashes_is_a_problem_of_its_engine_alone(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """Its status and its last words."""

    class Done:
        stdout, stderr, returncode = said, b"warning\nIllegal instruction\n", -4

    monkeypatch.setattr("subprocess.run", lambda *_, **__: Done)
    answer = engines._ask(TrialRequest("litert", "", "", 1, 1))
    assert (answer.engine, answer.agrees) == ("litert", False)
    assert answer.problem == "ended with status -4: Illegal instruction"


def test_a_trial_measures_and_compares(tmp_path: Path) -> None:
    """In this process: what the other one does, on the file that was converted for the shipped model."""
    open_engine("litert", DEFAULT_MODEL)
    with engines._files(DEFAULT_MODEL) as files:
        found = run(TrialRequest("litert", str(DEFAULT_MODEL), str(files), 1, 4))
    assert (found.problem, found.agrees) == ("", True)
    assert found.faces_per_s > 1
    assert found.agreement is not None
    assert found.agreement.age_mean_difference < ROUNDED.age_years
    assert "no model_int8.tflite" in run(TrialRequest("litert", str(DEFAULT_MODEL), str(tmp_path), 1, 4)).problem


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_a_container_is_not_given_more_threads_than_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], most: int | None
) -> None:
    """Of eight cores, as many as it is allowed, rounded up; all where there is no allowance."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert core_count(tmp_path) == (most or 8)


# ── the golden batch ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_golden_batch_comes_back_as_it_was_written(tmp_path: Path, manifest: Manifest) -> None:
    """Pixel by pixel; and what calibrates does not judge."""
    golden = read_golden(DEFAULT_MODEL, manifest)
    assert golden is not None
    write_golden(tmp_path, golden, manifest)
    again = read_golden(tmp_path, manifest)
    assert again is not None
    np.testing.assert_array_equal(again.crops, golden.crops)
    for one, other in zip(again.logits, golden.logits, strict=True):
        np.testing.assert_array_equal(one, other)
    judged = {crop.tobytes() for crop in golden.judged.crops}
    assert len(judged) == 16
    assert not judged & {crop.tobytes() for crop in golden.calibration}
    assert len(golden.calibration) + len(golden.judged.crops) == len(golden.crops)


def cut(path: Path) -> None:
    """Keep the first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "spoil", [cut, lambda path: path.write_bytes(b"nothing"), lambda path: np.savez(path, png=[1])]
)
def test_a_damaged_golden_batch_is_named(folder: Path, manifest: Manifest, spoil: Callable[[Path], object]) -> None:
    """With the command that writes it anew."""
    spoil(folder / GOLDEN_NAME)
    with pytest.raises(ConfigError, match=r"golden\.npz: damaged .* demographics export"):
        read_golden(folder, manifest)


def test_a_golden_batch_of_other_weights_is_refused(folder: Path, manifest: Manifest) -> None:
    """The weights were replaced, and the batch was left."""
    with pytest.raises(ConfigError, match="of other weights"):
        read_golden(folder, msgspec.structs.replace(manifest, sha256="ab" * 32))


def logits_of(crops: Crops, manifest: Manifest, shift: float) -> Logits:
    """Make logits that are the same for every crop, up to *shift* in those of gender."""
    years = manifest.ages[1] - manifest.ages[0] + 1
    gender = np.tile(np.array([[0.0, shift]], np.float32), (len(crops), 1))
    return Logits(np.zeros((len(crops), years), np.float32), gender, np.zeros((len(crops), 5), np.float32))


@given(st.floats(-20, 20, width=32))
def test_agreement_is_symmetric_and_perfect_with_oneself(shift: float) -> None:
    """And what is no number agrees with nothing."""
    manifest = load_manifest(DEFAULT_MODEL)
    crops = np.zeros((3, 1, 1, 3), np.uint8)
    one, other = logits_of(crops, manifest, 0.0), logits_of(crops, manifest, shift)
    assert agreement(one, one, manifest).within(EXACT)
    forth, back = agreement(one, other, manifest), agreement(other, one, manifest)
    assert forth.probability_mean_difference == pytest.approx(back.probability_mean_difference)
    assert forth.within(EXACT) == (forth.probability_mean_difference <= EXACT.probability)
    assert not agreement(one, logits_of(crops, manifest, float("nan")), manifest).within(ROUNDED)
