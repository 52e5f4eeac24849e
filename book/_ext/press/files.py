"""Files of the site: written whole or not at all, and only when they change."""

import hashlib
import os
from pathlib import Path


def sha(data: bytes) -> str:
    """Return a short hash."""
    return hashlib.sha256(data).hexdigest()[:20]


def written(path: Path, content: str | bytes) -> bool:
    """Write a file at one stroke, unless it holds the same; return whether it did.

    Pages are written by several processes: each has a file of its own until then.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(data)
    part.replace(path)
    return True
