"""Where files are kept that can be made again: features, engines, compiled models."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_DIGITS = 20


def cache_folder(kind: str) -> Path:
    """The folder for files of this kind, whether it is there or not; `$EDGECLF_CACHE_DIR` goes first."""
    if own := os.environ.get("EDGECLF_CACHE_DIR"):
        return Path(own).expanduser() / kind
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgeclf" / kind


def short_hash(text: str) -> str:
    """Enough of a SHA-256 to name a file after."""
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
