"""TeX to MathML, which browsers show without a script."""

from __future__ import annotations

import html
import re
from xml.etree import ElementTree

from icl_interp_reports.words import clean

# The converter knows \href and \unicode, so what it returns is held against these: MathML that draws, nothing else.
_TAGS = frozenset(
    (
        *("math", "menclose", "mfrac", "mi", "mn", "mo", "mover", "mpadded", "mphantom", "mroot", "mrow", "mspace"),
        *("msqrt", "mstyle", "msub", "msubsup", "msup", "mtable", "mtd", "mtext", "mtr", "munder", "munderover"),
    )
)
_ATTRIBUTES = frozenset(
    (
        *("accent", "accentunder", "columnalign", "columnlines", "columnspacing", "depth", "display", "displaystyle"),
        *("fence", "form", "height", "largeop", "linethickness", "lspace", "mathvariant", "maxsize", "minsize"),
        *("movablelimits", "notation", "rowlines", "rowspacing", "rspace", "scriptlevel", "separator", "stretchy"),
        *("symmetric", "voffset", "width"),
    )
)
_SPACES = frozenset(map(chr, (0xA0, *range(0x2000, 0x200C), 0x205F, *range(0x2061, 0x2065))))
_UNREAD = frozenset("\\&")  # a command or an environment that the converter does not know
_DEFINES = re.compile(r"\\(newcommand|newenvironment|def|DeclareMathOperator)")  # a few of them make gigabytes
LONGEST = 2_000  # characters of TeX


def mathml(tex: str) -> str | None:
    """A formula as MathML; None where the TeX cannot be read or would make more than a formula."""
    from latex2mathml.converter import convert_to_element

    if len(tex) > LONGEST or _DEFINES.search(tex):
        return None
    try:
        formula = convert_to_element(clean(tex), display="block")
        del formula.attrib["xmlns"]
        for element in formula.iter():
            if element.tag not in _TAGS or not _ATTRIBUTES.issuperset(element.keys()):
                return None
            element.text = html.unescape(element.text or "")  # symbols come as &#x…;
            if element.tag != "mtext" and not _UNREAD.isdisjoint(element.text):
                return None
        written = ElementTree.tostring(formula, encoding="unicode")
    except Exception:  # the converter has no error class of its own; the source beats no report
        return None
    return written if all(c.isprintable() or c in _SPACES for c in written) else None
