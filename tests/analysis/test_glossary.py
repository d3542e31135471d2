"""One vocabulary: the glossary, the names of measures, and the page that uses them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from analysis import glossary
from analysis.reporting.drawing import dark
from analysis.reporting.pages import _measure, _spoken


def test_the_documented_words_are_those_that_reports_use():
    written = (Path(__file__).parents[2] / "docs/glossary.md").read_text(encoding="utf-8")
    assert written == glossary.page()
    for term in ("OBF", "iso-loss", "exposed", "Ψ", "K", "noise ceiling", "own radius"):
        assert f"| {term} |" in written
    assert all(f"`{name}` |" in written for name in glossary.SYMBOLS)


def test_a_reader_sees_the_name_with_the_id_beside_it():
    told = str(_spoken("By `cw[obf, m=64]` and `my_file`."))
    assert '<span class="named" title="cw[obf, m=64]">right → wrong [OBF, m=64]</span>' in told
    assert "<code>my_file</code>" in told
    cell = str(_measure("top_eigenvalue †"))
    assert cell.startswith("largest eigenvalue †<code")
    assert "top_<wbr />eigenvalue" in cell


def test_a_dark_picture_keeps_hues_and_turns_lightness_round():
    shades = np.array([[[255, 255, 255], [0, 114, 178], [213, 94, 0], [29, 33, 38]]], dtype=np.uint8)
    light = io.BytesIO()
    Image.fromarray(shades).resize((400, 100), Image.Resampling.NEAREST).save(light, "png")
    seen = np.asarray(Image.open(io.BytesIO(dark(light.getvalue()))).convert("RGB"))[50, 50::100].astype(int)
    paper, blue, orange, ink = seen
    assert paper.max() < 40
    assert ink.min() > 200
    assert blue[2] > blue[1] > blue[0]
    assert orange[0] > orange[1] > orange[2]
