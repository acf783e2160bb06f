"""plotly.js comes out of a page as it went in, by the steps that the page takes."""

import gzip
from importlib.resources import files

import numpy as np
from plotly.offline import get_plotlyjs

from icl_interp_reports.plotlyjs import packed, script_hash, source_hash

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~"


def unpacked(text, count):
    """Five digits to the base 85 are four bytes, the first digit and the first byte the largest."""
    value = np.full(128, 2**40)  # far from any word, for what is no digit
    value[list(ALPHABET.encode())] = np.arange(85)
    words = value[list(text.encode())].reshape(-1, 5) @ 85 ** np.arange(4, -1, -1)
    assert words.max() < 2**32
    return words.astype(">u4").tobytes()[:count]


def test_it_comes_out_as_it_went_in():
    assert gzip.decompress(unpacked(*packed())).decode() == get_plotlyjs()


def test_the_page_reads_the_same_alphabet():
    script = (files("icl_interp_reports") / "templates" / "report.js").read_text(encoding="utf-8")
    assert f'"{ALPHABET}"' in script
    assert "<" not in packed()[0]


def test_the_same_source_gives_the_same_text():
    first = packed()
    packed.cache_clear()
    assert packed() == first


def test_hashes_as_a_browser_computes_them():
    assert script_hash("") == "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
    assert script_hash("ω") == "sha256-+u1dpfhPLunqjlZAOABQOzkQpzUnCnsuizmhgtX/phU="
    assert source_hash() == script_hash(get_plotlyjs())
