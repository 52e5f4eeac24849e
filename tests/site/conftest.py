"""The built site, and a browser to look at it with; skipped where there is none."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SITE = ROOT / "_build/html"

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

Script = Callable[..., Any]


def missing() -> str:
    """Return what the browser's tests lack, and how to get it; empty if nothing."""
    node = shutil.which("node")
    if not node:
        return "node is missing: apt-get install nodejs npm"
    said = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    number = re.match(r"v(\d+)", said)
    if not number or int(number[1]) < 20:
        return f"node is {said.strip() or 'unusable'}, the tests need 20 or newer"
    if not (HERE / "node_modules/ready").exists():
        return "Lighthouse and axe are missing: `npm ci` failed (no network?)"
    if not (os.environ.get("CHROME_PATH") or any(map(shutil.which, CHROMIUM))):
        return "Chromium is missing: apt-get install chromium, or set CHROME_PATH"
    return ""


@pytest.fixture(scope="session")
def browser() -> None:
    """Skip where there is no browser; say why."""
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def site(browser: None, built: str) -> Path:
    """The site, built as a reader builds it."""
    return SITE


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    """Run a script of this folder on a site; return the JSON that it writes."""

    def run(name: str, folder: Path, *arguments: str) -> Any:
        out = tmp_path_factory.mktemp(name) / "out.json"
        command = ["node", f"{HERE}/{name}.mjs", "--site", folder, "--out", out]
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, done.stderr[-5000:]
        return json.loads(out.read_text(encoding="utf-8"))

    return run


@pytest.fixture(scope="session")
def survey(site: Path, script: Script) -> dict[str, dict[str, Any]]:
    """What a browser saw on each page: its loads light, dark and from the disk."""
    return script("survey", site)["pages"]
