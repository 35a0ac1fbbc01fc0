"""`make audit`: known vulnerabilities, a bill of materials (CycloneDX) and the licences of what is installed for the product.

    python -m deploy.audit UV FOLDER

Exit status 1 where something is known to be vulnerable, 3 where nobody could be asked about some of it: that is not safe.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

PIP_AUDIT: Final = "pip-audit==2.10.1"
INCOMPLETE: Final = 3
_STRONG: Final = re.compile(r"(?<!L)(?<!Lesser )\b(?:A?GPL|(?:Affero )?General Public)", re.IGNORECASE)
_WEAK: Final = re.compile(r"LGPL|Lesser General|MPL|Mozilla|EPL|Eclipse", re.IGNORECASE)


class Licence(NamedTuple):
    """What a package says of its licence."""

    name: str
    version: str
    text: str

    @property
    def kind(self) -> str:
        """Sort it by what it asks of whoever passes the package on."""
        if not self.text:
            return "not said"
        if _STRONG.search(self.text) and not re.search(r" OR |Apache|MIT|BSD", self.text):
            return "strong copyleft"
        return "weak copyleft" if _WEAK.search(self.text) else "permissive"


def requirements(text: str) -> dict[str, str]:
    """Read name and version of each package from exported requirements."""
    return {found[1]: found[2] for found in re.finditer(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE)}


def licence_of(name: str, version: str) -> Licence:
    """Ask an installed package; the expression of PEP 639 first, then its classifiers, then its own words."""
    try:
        said: Message[str, str] = metadata(name)  # type: ignore[assignment]  # an e-mail's message, by the documentation
    except PackageNotFoundError:
        return Licence(name, version, "")
    classified = [c.rpartition(" :: ")[2] for c in said.get_all("Classifier") or () if c.startswith("License :: ")]
    text = (
        said.get("License-Expression")
        or ", ".join(classified)
        or (said.get("License") or "").strip().partition("\n")[0]
    )
    return Licence(name, version, text[:100])


def licence_page(licences: list[Licence]) -> str:
    """Write the report: by kind, what needs a look first."""
    kinds = Counter(licence.kind for licence in licences)
    lines = ["# Licences", "", ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()), ""]
    for kind in ("strong copyleft", "not said", "weak copyleft", "permissive"):
        if mine := [licence for licence in licences if licence.kind == kind]:
            lines += [f"## {kind}", "", "| package | version | licence |", "|---|---|---|"]
            lines += [
                f"| {each.name} | {each.version} | {each.text or 'not installed here, or not said'} |" for each in mine
            ]
            lines.append("")
    return "\n".join(lines)


def vulnerabilities(report: dict[str, Any]) -> tuple[list[str], int, int]:
    """Read pip-audit's report: what was found, how many packages were asked about, and how many could not be."""
    found, asked, skipped = [], 0, 0
    for package in report.get("dependencies", ()):
        if "skip_reason" in package:
            skipped += 1
            continue
        asked += 1
        for known in package.get("vulns", ()):
            mended = ", ".join(known.get("fix_versions") or ()) or "no version yet"
            found.append(f"{package['name']} {package['version']}: {known['id']}; mended in {mended}")
    return found, asked, skipped


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)  # noqa: S603  our own words
    if done.returncode:
        raise RuntimeError(f"{command[1]} failed: {done.stderr.strip()[-500:]}")


def audit(uv: Path, folder: Path) -> Iterator[str | int]:
    """Write everything to *folder*; gives what is to be said, and the exit status last."""
    folder.mkdir(parents=True, exist_ok=True)
    listed, bill, report = folder / "requirements.txt", folder / "sbom.cdx.json", folder / "vulnerabilities.json"
    export = (uv, "export", "--frozen", "--no-dev", "--no-emit-project", "--quiet", "-o")
    _run(*export, listed)
    _run(*export, bill, "--format", "cyclonedx1.5", "--preview-features", "sbom-export")
    packages = requirements(listed.read_text())
    components = json.loads(bill.read_text())["components"]
    yield f"{bill}: {len(components)} components"
    licences = [licence_of(name, version) for name, version in sorted(packages.items())]
    (folder / "licences.md").write_text(licence_page(licences))
    kinds = Counter(licence.kind for licence in licences)
    yield f"{folder / 'licences.md'}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    report.unlink(missing_ok=True)
    tool = (uv, "tool", "run", "--from", PIP_AUDIT, "pip-audit", "-r", listed, "--disable-pip", "--require-hashes")
    try:
        subprocess.run(  # noqa: S603  our own words
            [str(word) for word in (*tool, "--progress-spinner", "off", "-f", "json", "-o", report)],
            capture_output=True, timeout=600, check=False,
        )  # fmt: skip
        found, asked, skipped = vulnerabilities(json.loads(report.read_text()))
    except (OSError, ValueError, subprocess.TimeoutExpired):
        found, asked, skipped = [], 0, len(packages)
    yield from found
    yield f"{report}: {asked} packages asked about, {len(found)} vulnerabilities known, {skipped} could not be asked about"
    yield 1 if found else INCOMPLETE if skipped else 0


def main(arguments: list[str]) -> int:
    """Audit, and say what was found."""
    uv, folder = map(Path, arguments)
    for said in audit(uv, folder):
        if isinstance(said, int):
            return said
        sys.stdout.write(f"{said}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
