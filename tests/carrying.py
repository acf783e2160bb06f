"""What a sweep's page carries, unpacked as its script unpacks it."""

from __future__ import annotations

import base64
import gzip
import json
import re
import struct
from typing import Any


def carried(page: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The rows in a page: its header, and each column's bytes."""
    size, text = re.search(r'id="rows" data-bytes="(\d+)">(.*?)</script>', page, re.DOTALL).groups()
    content = gzip.decompress(base64.b85decode(text.replace(",", "<"))[: int(size)])
    (length,) = struct.unpack("<I", content[:4])
    header, rest = json.loads(content[4 : 4 + length]), content[4 + length :]
    width = 4 * header["runs"]
    columns = {c["name"]: rest[i * width : (i + 1) * width] for i, c in enumerate(header["columns"])}
    return header, columns
