"""README's picture and sentences are those of the default study's tables, which are kept in docs/digits."""

import io
import re

import numpy as np
import pytest
from matplotlib.image import imread

from studies import frontpage


def test_readme_says_what_the_tables_say():
    readme = (frontpage.ROOT / "README.md").read_text(encoding="utf-8")
    assert frontpage.sentences(frontpage.read()) in " ".join(readme.split())


def test_the_picture_is_drawn_from_the_tables():
    drawn = imread(io.BytesIO(frontpage.picture(frontpage.read())))
    kept = imread(frontpage.PICTURE)
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).mean() < 1e-3


def test_a_sentence_that_the_tables_undo_is_refused():
    tables = frontpage.read()
    rows = tables["correlations"]
    turned = rows.assign(high=rows["high"].where(rows["measure"] != frontpage.FORGETTING, 0.1))
    with pytest.raises(ValueError, match="F_mi orders the models, which the default study does not show"):
        frontpage.sentences({**tables, "correlations": turned})


def test_every_coefficient_in_the_sentences_is_in_the_tables():
    tables = frontpage.read()
    numbers = tables["correlations"].select_dtypes("number").to_numpy().ravel()
    known = {f"{x:.2f}".replace("-", "−") for x in numbers[np.isfinite(numbers)]}
    assert set(re.findall(r"−?\d\.\d\d", frontpage.sentences(tables))) <= known
