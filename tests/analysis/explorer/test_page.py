"""The explorer in a browser, worked as a reader works it, on a phone and on a wide screen."""

import re
from dataclasses import replace

import pytest
from synthetic import METHODS, make

from analysis.explorer.page import explorer

pytestmark = pytest.mark.xdist_group("explorer")
M_SHARPNESS = "m_sharpness[rho=0.05, m=16]"
BAD = '</script><img src=x onerror=alert(1)>"&amp;'


def draw_around(page, left, top, right, bottom):
    """A lasso around a part of the plot, in shares of its width and height."""
    page.locator("#scatter").scroll_into_view_if_needed()
    box = page.locator("#scatter .nsewdrag").first.bounding_box()
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()


def test_a_reader_chooses_axes_and_runs(here):
    page = here.page
    assert here.probe("sticksOut") == []
    assert here.probe("unnamed") == []
    whole = here.numbers()
    assert list(whole) == ["pooled", "stratified", "within methods", "configurations", "runs", "cells, methods"]
    assert len(whole["pooled"]) == 1
    here.choose("x", M_SHARPNESS)
    for menu, value in (("colour", "hp.rho"), ("size", "gap_error"), ("facet", "method")):
        here.choose(menu, value)
    assert page.locator("#scatter .annotation").count() == len(METHODS)
    assert here.probe("sticksOut") == []
    here.choose("facet", "")
    page.evaluate("document.getElementById('narrow').open = true")  # folded on a phone
    page.locator('#filters input[value="SGD"]').uncheck()
    here.rest()
    some = here.numbers()
    assert len(some["pooled"]) == 2
    assert int(some["runs"][0]) < int(some["runs"][1])
    assert "Exploratory" in page.locator("#coefficients").inner_text()
    assert "only.method=SAM" in here.address()
    page.select_option("#range-of", "test_error")
    page.fill("#range-low", "0.1")
    page.press("#range-low", "Enter")
    here.rest()
    assert "range.test_error=0.1..Infinity" in here.address()
    before = here.chosen()
    draw_around(page, 0.02, 0.02, 0.98, 0.7)
    page.wait_for_function("location.hash.includes('runs=')")
    here.rest()
    assert 0 < here.chosen() < before
    kept, address, numbers = here.chosen(), here.address(), here.numbers()
    page.click("#all")
    here.rest()
    assert len(here.numbers()["pooled"]) == 1
    assert "only." not in here.address()
    here.go("")
    here.go(address)  # what a co-author sees
    assert (here.chosen(), here.numbers(), page.input_value("#x")) == (kept, numbers, M_SHARPNESS)
    assert page.locator("#chips button").count() == 3


def test_the_plot_and_a_box_on_an_axis_answer_the_mouse(wide, data):
    page = wide.page
    page.locator("#scatter").scroll_into_view_if_needed()
    spot = page.locator("#scatter .scatterlayer .point").nth(3).bounding_box()
    page.mouse.move(spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2)
    page.wait_for_selector("#scatter .hoverlayer text")
    said = page.locator("#scatter .hoverlayer").text_content()
    assert re.search(r"radius ρ [\d.]+.*learning rate [\d.]+", said) or re.search(r"learning rate .*radius ρ", said)
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector("dialog[open]")
    run = page.evaluate("Explorer.view.state.run")
    assert run in data["runs"]["id"]
    assert run in said
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="hidden")
    page.locator("#parallel").scroll_into_view_if_needed()
    box = page.locator("#parallel .nsewdrag").bounding_box()
    axes = page.evaluate("Explorer.parallel.axes().map((v) => v.id)")
    at = box["x"] + box["width"] * (axes.index("gap_error") + 0.15) / (len(axes) - 1 + 0.5)
    page.mouse.move(at - 12, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(at + 12, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.wait_for_function("location.hash.includes('range.gap_error=')")
    wide.rest()
    assert 0 < wide.chosen() < len(data["runs"]["id"])


def test_a_run_is_opened_from_the_keyboard(here, data, results):
    page = here.page
    page.locator("#list button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    run = page.evaluate("Explorer.view.state.run")
    assert f"run={run}" in here.address()
    text = page.locator("dialog").inner_text()
    command = data["runs"]["command"][data["runs"]["id"].index(run)]
    assert command.startswith("landscape train --")
    for word in ("finished, 20 epochs", "Training", "Spectrum", "Forgetting", f"toy/runs/{run}/config.json", command):
        assert word in text
    assert page.locator("dialog .curve svg").count() > 0
    rows = results.measures.query("run_id == @run and measure == 'top_eigenvalue'").sort_values("step")
    assert "two tied parameters" in page.locator("dialog tr", has_text="parameter_norm").text_content()
    row = page.locator("dialog tr", has_text="top_eigenvalue").inner_text()
    assert f"{rows['value'].iloc[-1]:.4g} ± " in row
    assert here.probe("sticksOut") == []
    assert here.probe("unnamed") == []
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="hidden")
    assert "run=" not in here.address()
    assert page.evaluate("document.activeElement.dataset.run") is not None


def test_addresses_may_name_what_is_not_there(wide, data):
    wide.go("run=asam-r2-l0.1-s0&x=nothing&runs=abcdef.0-3&range.test_error=a..b&only.nothing=1&sort=no")
    assert "diverged: loss is not finite at step 250" in wide.page.locator("dialog").inner_text()
    assert wide.page.input_value("#x") == data["start"]["x"]
    assert wide.chosen() == len(data["runs"]["id"])  # numbers of runs of another page are not taken
    assert "of another page" in wide.page.locator("#chips").inner_text()
    wide.page.keyboard.press("Escape")


def test_the_table_of_measures_is_searched_sorted_and_explained(here):
    page = here.page
    visible = page.locator("#measures tbody tr:not(.about):visible")
    shown = visible.count()
    page.fill("#search", "eigen sharp")
    assert 0 < visible.count() < shown
    page.fill("#search", "")
    page.select_option("#family", "forgetting")
    assert set(page.locator("#measures tr:visible td:nth-of-type(1)").all_inner_texts()) == {"forgetting"}
    number = int(page.inner_text("#count").split()[0])
    page.evaluate("document.querySelector('[data-whole]')?.click()")  # the rest of many
    assert visible.count() == number
    page.select_option("#family", "")
    page.locator('[data-sort="stratified.0"]').click()
    assert page.locator('th[data-key="stratified.0"]').get_attribute("aria-sort") == "descending"
    texts = page.locator("#measures tbody tr:visible td:nth-of-type(3)").all_inner_texts()
    values = [abs(float(text.replace("−", "-"))) for text in texts if text != "–"]
    assert len(values) > 5
    assert values == sorted(values, reverse=True)
    page.locator("#measures tr", has_text="top_eigenvalue").locator("a").click()
    about = page.locator("tr.about").inner_text()
    assert "Larger means" in about
    assert "landscape measure FOLDER --measures hessian_eigenvalues" in about
    assert page.locator("tr.about a").get_attribute("href") == "report.html#table-measures"
    assert "about=top_eigenvalue" in here.address()
    page.locator("#measures button", has_text="gradient norm").click()
    here.rest()
    assert page.input_value("#x") == "gradient_norm"
    assert here.probe("sticksOut") == []


def test_marks_are_legible_on_light_and_dark_pages(wide):
    found = {}
    for scheme in ("dark", "light"):
        wide.page.evaluate("document.documentElement.dataset.ready = 'until the colours change'")
        wide.page.emulate_media(color_scheme=scheme)
        wide.rest()
        found[scheme] = wide.probe("contrast")
    light, dark = found["light"], found["dark"]
    assert light["paper"] > 0.95
    assert dark["paper"] < 0.05
    assert light["number"] == dark["number"] > 20
    assert min(light["least"], dark["least"]) >= 3


def test_two_studies_are_never_mixed_and_names_cannot_break_the_page(results, wide, tmp_path, opened):
    other = make(seed=3)
    notes = [f"{BAD}{i % 2}" for i in range(len(other.runs))]
    other = replace(
        other, folder=tmp_path / "other", study={**other.study, "name": BAD, "question": BAD},
        runs=other.runs.assign(**{"hp.model": BAD, "hp.note": notes}),
    )  # fmt: skip
    path = explorer([results, other]).save(tmp_path / "two.html")
    assert BAD not in path.read_text(encoding="utf-8")
    here = opened(path)
    wide.go("x=top_eigenvalue&y=gap_error")
    here.go("x=top_eigenvalue&y=gap_error")
    for row, cells in wide.numbers().items():
        assert here.numbers()[row][0] == cells[0]
    assert len(here.numbers()["pooled"]) == 2
    assert here.page.input_value("#facet") == "study"
    assert here.page.locator("#scatter .annotation").count() == 2
    heads = here.page.locator("#measures thead th").all_inner_texts()
    assert sum(head.startswith("τ pooled") for head in heads) == 2
    here.go("facet=hp.note&colour=hp.note&only.study=toy_study")
    assert here.page.evaluate("Explorer.view.data.studies[1].name") == BAD
    assert here.page.locator("img").count() == 0
    assert here.numbers()["runs"][2] == "0"


def test_a_notebook_shows_it_in_a_frame(results, tmp_path, opened):
    shown = results.explore()
    assert repr(shown).startswith("<Explorer 'toy_study': ")
    path = tmp_path / "notebook.html"
    page = f"<!doctype html><html data-ready=yes><meta charset=utf-8><body>{shown._repr_html_()}</body></html>"
    path.write_text(page, encoding="utf-8")
    frame = opened(path).page.frame_locator("iframe")
    frame.locator("#coefficients td").first.wait_for()
    frame.locator("#x").select_option("gradient_norm")
    frame.locator("caption", has_text="gradient norm").wait_for()
