"""Formulas: TeX becomes MathML that draws, or nothing at all."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_interp_reports.formulas import LONGEST, mathml

# What acts, loads, links or carries a style; MathML's other attributes only say how to draw.
ACTS = {"href", "src", "style", "class", "id", "actiontype", "altimg", "encoding", "definitionurl"}
PIECES = (
    *("x", "1", " ", "{", "}", "(", "&", "\\\\", "^", "_", "<", ">", '"', "'", "$", "%", "#", "\n", "\u202e", "\udcff"),
    *(r"\frac", r"\sqrt", r"\text", r"\hat", r"\sum", r"\left(", r"\right)", r"\begin{matrix}", r"\end{matrix}"),
    *(r"\href", r"\style", r"\class", r"\color", r"\unicode", r"\hspace", r"\def", r"\newcommand", r"\unknown"),
    *("<script>", "</script>", "]]>", "<!--", "&lt;", "&#x202e;", "&nbsp;", "onload=", "javascript:"),
)


def drawn(formula):
    """Its elements, if it is well-formed MathML that only draws, on one printable line."""
    elements = list(ElementTree.fromstring(formula).iter())
    assert elements[0].tag == "math"
    for element in elements:
        assert element.tag.startswith("m")
        assert element.tag not in ("maction", "map", "marquee", "menu", "meta", "mglyph", "meter")
        assert not [name for name in element.attrib if name.lower() in ACTS or name.startswith(("on", "xlink", "data"))]
    assert not set(formula) & set("\n\x1b\x85\u200e\u200f\u202a\u202e\u2066\u2028\udcff\ufeff")
    return elements


@pytest.mark.parametrize(
    ("tex", "text", "tag"),
    [
        (r"\hat y = \frac{1}{2}", "y^=12", "mfrac"),
        (r"\omega_h \in \mathbb R^d", "ωh∈Rd", "msubsup"),
        (r"\sum_{i=1}^n x_i^\top", "∑i=1nxi⊤", "munderover"),
        (r"\begin{pmatrix}a & b\\ c & d\end{pmatrix}", "(abcd)", "mtable"),
        (r"a < b > c", "a<b>c", "mo"),
        (r"\text{where } x < 1 \text{ & so on}", "where x<1 & so on", "mtext"),
        (r"\left\lVert x\right\rVert", "‖x‖", "mo"),
        (r"\operatorname{softmax}(z)", "softmax(z)", "mi"),
    ],
)
def test_a_formula(tex, text, tag):
    elements = drawn(mathml(tex))
    assert "".join(elements[0].itertext()).replace("\xa0", " ") == text
    assert tag in {element.tag for element in elements} or tag == "msubsup"
    assert elements[0].get("display") == "block"


@pytest.mark.parametrize(
    "tex",
    [
        *("", " ", "{", r"\left(", r"\begin{matrix}a", "x^", "{" * 10_000, "{" * 10_000 + "}" * 10_000),
        *(r"\href{javascript:alert(1)}{x}", r"\style{color:red}{x}", r"\class{a}{x}", r"\color{red}{x}"),
        *(r"\unicode{x202e}", r"\text{&#x202e;}", r"\text{&#8238;}", r"\text{&#x1b;}&#x2028;"),
        *(r"\cssId{a}{b}", r"\unknown{x}", r"\begin{unknown}a & b\end{unknown}"),
        "x" * (LONGEST + 1),
    ],
    ids=lambda tex: tex[:20],
)
def test_what_cannot_be_read_or_does_more_than_draw(tex):
    assert mathml(tex) is None


@pytest.mark.parametrize("tex", [r"\text{<script>alert(1)</script>}", r"\text{</math><img src=x onerror=alert(1)>}"])
def test_markup_in_a_formula_is_text(tex):
    (text,) = [element.text for element in drawn(mathml(tex)) if element.tag == "mtext"]
    assert text.replace("\xa0", " ") == tex.removeprefix(r"\text{").removesuffix("}")


def test_definitions_cannot_make_gigabytes():
    names = [f"\\q{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(41)]
    doubled = [f"\\newcommand{{{new}}}{{{{{old} }}{{{old} }}}}" for old, new in pairwise(names)]
    bomb = f"\\newcommand{{{names[0]}}}{{x}}{''.join(doubled)}{names[-1]}"  # 2^40 letters
    assert len(bomb) <= LONGEST
    assert mathml(bomb) is None


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(st.characters(), max_size=50))
def test_no_tex_becomes_more_than_a_formula(tex):
    if (formula := mathml(tex)) is not None:
        drawn(formula)


def test_the_property_is_not_vacuous():
    assert sum(mathml(piece) is not None for piece in PIECES) > len(PIECES) / 3
