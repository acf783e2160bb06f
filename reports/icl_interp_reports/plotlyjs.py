"""plotly.js as a page carries it: gzip in base85, and the hash by which the page's policy lets it run.

The source comes from the installed plotly package (4.8 MB; 1.84 MB as carried), never from the network.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from functools import cache


@cache
def packed() -> tuple[str, int]:
    """The source, as `carried`; the same source gives the same text."""
    return carried(_source().encode())


def carried(content: bytes) -> tuple[str, int]:
    """Bytes as a page carries them: gzipped, in base85; and how many bytes they are gzipped.

    RFC 1924's alphabet, but for a comma in place of "<", with which markup begins.  Base64 would take 7 % more.
    """
    compressed = gzip.compress(content, 9, mtime=0)
    return base64.b85encode(compressed, pad=True).decode().replace("<", ","), len(compressed)


@cache
def source_hash() -> str:
    """Its `sha256-…` for a Content-Security-Policy."""
    return script_hash(_source())


def script_hash(script: str) -> str:
    """The `sha256-…` under which a Content-Security-Policy allows this inline script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _source() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
