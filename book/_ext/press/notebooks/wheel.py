"""The package as a wheel, made by hand: no network, no tool, the same bytes each time.

It holds what the notebooks need: the modules of the packages that pyproject.toml
names, and the data that it lets travel with them, among which are the runs that
:func:`pushforward.record.root` finds beside the package.
"""

import base64
import fnmatch
import hashlib
import io
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import written

SINCE = (2000, 1, 1, 0, 0, 0)  # the date of every file
TAG = "py3-none-any"


class Wheel:
    """The wheel of the project whose pyproject.toml lies in ``root``."""

    def __init__(self, root: Path) -> None:
        self.code = root / "code"
        self.readme = root / "README.md"
        self.settings: dict[str, Any] = tomllib.loads(
            (root / "pyproject.toml").read_text(encoding="utf-8")
        )
        self.project: dict[str, Any] = self.settings["project"]

    @property
    def version(self) -> str:
        """The version of the package."""
        return str(self.project["version"])

    @property
    def stem(self) -> str:
        """Name and version, as file names have them."""
        return f"{self.project['name'].replace('-', '_')}-{self.version}"

    @property
    def name(self) -> str:
        """The wheel's file name."""
        return f"{self.stem}-{TAG}.whl"

    def files(self) -> dict[str, bytes]:
        """Return what is installed, by its path, sorted."""
        setup = self.settings["tool"]["setuptools"]
        found = setup["packages"]["find"]["include"]
        data = setup.get("package-data", {})
        tops = [p for p in sorted(self.code.iterdir()) if p.name.isidentifier()
                and any(fnmatch.fnmatch(p.name, i) for i in found)]  # fmt: skip
        return {
            path.relative_to(self.code).as_posix(): path.read_bytes()
            for top in tops
            for path in sorted(top.rglob("*"))
            if path.is_file() and shipped(path.relative_to(self.code), data)
        }

    def about(self) -> dict[str, bytes]:
        """Return the files that say what the wheel is, without RECORD."""
        scripts = self.project.get("scripts", {})
        lines = [f"{key} = {value}" for key, value in scripts.items()]
        texts = {
            "METADATA": self.metadata(),
            "WHEEL": "Wheel-Version: 1.0\nGenerator: press\n"
            f"Root-Is-Purelib: true\nTag: {TAG}\n",
            "entry_points.txt": "\n".join(["[console_scripts]", *lines, ""]),
        }
        return {f"{self.stem}.dist-info/{k}": t.encode() for k, t in texts.items()}

    def metadata(self) -> str:
        """Return name, version and dependencies as installers read them."""
        needs = self.project.get("dependencies", [])
        head = [
            "Metadata-Version: 2.1",
            f"Name: {self.project['name']}",
            f"Version: {self.version}",
            f"Summary: {self.project.get('description', '')}",
            f"Requires-Python: {self.project.get('requires-python', '>=3.11')}",
            *(f"Requires-Dist: {need}" for need in needs),
            "Description-Content-Type: text/markdown",
        ]
        text = self.readme.read_text(encoding="utf-8") if self.readme.exists() else ""
        return "\n".join(head) + "\n\n" + text

    def write(self, folder: Path) -> Path:
        """Write the wheel into a folder, unless the same one lies there.

        Older wheels of the package are removed.
        """
        path, files = folder / self.name, self.files() | self.about()
        record = f"{self.stem}.dist-info/RECORD"
        listed = "".join(f"{line(k, v)}\n" for k, v in files.items()) + f"{record},,\n"
        if recorded(path, record) != listed:
            zipped(path, [*files.items(), (record, listed.encode())])
        for other in folder.glob("*.whl"):
            if other != path:
                other.unlink()
        return path


def shipped(path: Path, data: dict[str, list[str]]) -> bool:
    """Return whether a file travels: modules and package data, nothing hidden.

    Args:
        path: From the folder of the packages.
        data: Patterns of names, by the package; "*" for those of all packages.
    """
    if any(part.startswith(".") or part == "__pycache__" for part in path.parts):
        return False
    package = ".".join(path.parts[:-1])
    patterns = ["*.py", *data.get("*", []), *data.get(package, [])]
    return any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns)


def line(path: str, data: bytes) -> str:
    """Return the line of RECORD for a file."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"{path},sha256={digest.decode()},{len(data)}"


def recorded(path: Path, record: str) -> str:
    """Return the RECORD of a wheel; "" where there is none."""
    if not path.exists():
        return ""
    with zipfile.ZipFile(path) as wheel:
        return wheel.read(record).decode() if record in wheel.namelist() else ""


def zipped(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write a zip file as a whole; the same files make the same bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as target:
        for name, data in files:
            info = zipfile.ZipInfo(name, SINCE)
            info.external_attr = 0o100644 << 16
            packed = name.endswith((".whl", ".gz", ".pdf", ".png", ".woff2"))
            info.compress_type = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
            target.writestr(info, data)
    written(path, made.getvalue())
