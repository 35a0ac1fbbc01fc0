"""What the product is made of: nothing that executes what it reads, nothing unchecked, and an audit that tells the truth."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.audit import Licence, licence_of, licence_page, requirements, vulnerabilities
from pipeline.manifest import DEFAULT_MODEL, load_manifest, verified_weights

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "ingest", "inference", "aggregator", "training", "demo", "deploy")
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "pandas",
    "torch",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def offences(source: str) -> Iterator[str]:
    """Say what in a module would execute what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FORBIDDEN_MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in FORBIDDEN_CALLS or name in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}:
                yield name
            if name.endswith("np.load") and keywords.get("allow_pickle") != "False":
                yield "np.load that may unpickle"
            if name.endswith("load_model") and keywords.get("safe_mode") != "True":
                yield "load_model that may run code"
            if keywords.get("shell") == "True":
                yield f"{name} by a shell"


def test_nothing_executes_what_it_reads() -> None:
    """No pickle in any disguise, no eval, no shell; arrays and models are loaded in their safe ways."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 80
    assert {str(path.relative_to(ROOT)): found for path in files if (found := list(offences(path.read_text())))} == {}


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from joblib import load", "eval(x)", "yaml.load(x)", "np.load(x)", "keras.models.load_model(x)",
     "subprocess.run(x, shell=True)", "import torch.nn"],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(source: str) -> None:
    """Each way of running what is read."""
    assert list(offences(source))


@pytest.mark.slow
def test_loading_the_model_unpickles_nothing() -> None:
    """Keras' file holds weights and a description: nothing is unpickled, by Python's own account, nor is a network asked."""
    script = """
import sys
seen = []
sys.addaudithook(lambda event, arguments: seen.append(event) if event in ("pickle.find_class", "socket.connect") else None)
from inference.tensorflow_predictor import TensorFlowPredictor
from pipeline.manifest import DEFAULT_MODEL
import numpy as np
predictor = TensorFlowPredictor(DEFAULT_MODEL, threads=1)
side = predictor.manifest.crop.size_px
before = list(seen)
predictor.predict(np.zeros((1, side, side, 3), np.uint8))
print("unpickled", seen.count("pickle.find_class"), "connected", seen.count("socket.connect"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["unpickled 0 connected 0"], done.stdout + done.stderr[-2000:]


def test_the_shipped_model_is_the_one_that_its_manifest_names() -> None:
    """tests/inference/test_predictor.py shows that one with another byte is refused; so does the detector's."""
    assert verified_weights(DEFAULT_MODEL, load_manifest(DEFAULT_MODEL)).is_file()


def test_every_package_of_the_lock_file_has_its_digest() -> None:
    """`make setup` installs from it alone, and uv refuses a file whose digest differs."""
    locked = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    assert len(locked) > 100
    for package in locked:
        files = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else [])]
        own = "editable" in package["source"] or "virtual" in package["source"]
        assert own or files, package["name"]
        assert all(file["hash"].startswith("sha256:") and len(file["hash"]) == 71 for file in files), package["name"]
        assert own or package["source"] == {"registry": "https://pypi.org/simple"}, package["name"]
    assert "--frozen" in (ROOT / "Makefile").read_text()


def test_an_audit_that_could_not_ask_does_not_say_that_all_is_well() -> None:
    """What was skipped is counted apart from what is known to be good."""
    report = {
        "dependencies": [
            {"name": "good", "version": "1", "vulns": []},
            {"name": "bad", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]},
            {"name": "unknown", "skip_reason": "not found"},
        ]
    }
    assert vulnerabilities(report) == (["bad 2: CVE-1; mended in 3"], 2, 1)


def test_licences_are_read_and_sorted() -> None:
    """What asks most of whoever passes it on comes first."""
    assert requirements("a-b==1.2 \\\n    --hash=sha256:x\nc==3 ; python_version < '4'\n# d==5\n") == {
        "a-b": "1.2",
        "c": "3",
    }
    assert licence_of("numpy", "x").kind == "permissive"
    assert licence_of("no-such-package-here", "1").kind == "not said"
    kinds = {"GPL-3.0-only": "strong copyleft", "LGPL-2.1": "weak copyleft", "MPL-2.0": "weak copyleft", "MIT": "permissive",
             "GNU Affero General Public License v3": "strong copyleft", "GPL-2.0 OR MIT": "permissive"}  # fmt: skip
    for text, kind in kinds.items():
        assert Licence("p", "1", text).kind == kind, text
    page = licence_page([Licence("good", "1", "MIT"), Licence("odd", "1", "AGPL-3.0")])
    assert page.index("odd") < page.index("good")
