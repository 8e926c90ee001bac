"""What the documents say exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "bentos/README.md",
    "feature_repo/README.md",
    "infra/envoy/README.md",
    "pipelines/adapters/database/README.md",
    "pipelines/training/README.md",
    "tests/benchmarks/bench/serving/README.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    targets = [one for one in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in one]
    missing = [one for one in targets if not ((REPOSITORY / page).parent / one).exists()]
    assert missing == []


def test_the_readme_names_only_commands_that_there_are() -> None:
    text = (REPOSITORY / "README.md").read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)", text)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    command = REPOSITORY / ".venv" / "bin" / "darkroom"
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    for name in set(re.findall(r"`(?:\.venv/bin/)?darkroom ([a-z]+)", text)):
        assert name in shown, name
