"""The interactive page: its content, and how it behaves in a browser without a network."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from made_surfaces import banana, bowl, hole, made, path

from analysis.surfaces.interactive import write_page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"no browser installed: none of {', '.join(NAMES)}")
FLAGS = (
    "--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-quic", "--no-first-run", "--disable-sync", "--disable-background-networking", "--hide-scrollbars",
    "--disable-component-update", "--disable-dev-shm-usage", "--enable-logging=stderr", "--virtual-time-budget=8000",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip

HINTS = ("GL Driver Message", "Canvas2D: Multiple readback")  # of Chromium, on drawing speed without a GPU

# Works the controls from inside, as a reader does, and tells the page around it what came of it.
PROBE = """<script>
addEventListener("load", async () => {
  const rest = () => new Promise((done) => setTimeout(done, 400));
  const get = (id) => document.getElementById(id);
  const choose = (id, value, event = "change") => {
    if (get(id)) { get(id).value = value; get(id).dispatchEvent(new Event(event)); }
  };
  const plots = () => [...document.querySelectorAll(".plot")];
  const traces = (type) => plots().flatMap((div) => (div.data || []).filter((t) => t.type === type));
  const tops = () => traces("contour").map((t) => Math.max(...t.z.flat().filter((v) => v !== null)));
  await rest();
  const width = document.documentElement.clientWidth;
  const all = [...document.body.querySelectorAll("main > *, .card, .plot, .controls label, li, h1, p")];
  const found = {
    ready: document.documentElement.dataset.ready, width, scrollWidth: document.documentElement.scrollWidth,
    wide: all.filter((e) => e.getBoundingClientRect().right > width + 1).map((e) => e.tagName + "." + e.className),
    surfaces: traces("surface").length, contours: traces("contour").length,
    canvases: document.querySelectorAll("canvas").length, tops: tops(),
    hover: traces("contour").map((t) => t.text[0][0]), label: get("cut-label") && get("cut-label").textContent,
    lost: traces("scatter").filter((t) => t.marker && t.marker.symbol === "x-thin").length,
    sizes: Math.min(...[...document.querySelectorAll("p, li, td, label, select")]
      .map((e) => parseFloat(getComputedStyle(e).fontSize))),
    named: plots().every((e) => e.getAttribute("aria-label")),
  };
  choose("metric", "error"); choose("scale", "log"); await rest();
  found.logTops = tops(); found.bar = traces("contour").map((t) => t.colorbar.title.text);
  choose("cut", "0", "input"); await rest();
  found.moved = get("cut-label") && get("cut-label").textContent;
  choose("model", "1"); await rest();
  found.single = traces("contour").length;
  found.title = document.querySelector(".card h2") && document.querySelector(".card h2").textContent;
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""
FRAME = """<!doctype html><body style="margin:0"><iframe src="probe.html" style="border:0;width:{width}px;height:900px">
</iframe><pre id="found"></pre><script>
addEventListener("message", (event) => {{
  const ours = typeof event.data === "string" && event.data.startsWith("{{");
  if (ours) document.getElementById("found").textContent = event.data;
}});
</script></body>"""


def models():
    return {
        "sgd": made(lambda x, y: 2 * banana(x, y), points=7, spoil=hole, top_eigenvalue=31.2, parameters=100),
        "sam": made(banana, points=7, top_eigenvalue=12.3, sharpness={"ascent sharpness": 0.25}),
    }


def data_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return write_page(
        models(), folder / "x.html", title="SGD & SAM", paths={"sam": [path()]}, command="landscape surface a b"
    )


def look(page, folder, width):
    text = page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>")
    (folder / "probe.html").write_text(text, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width + 200},1000", "--dump-dom",
         (folder / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=250, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    console = [line for line in lines if not any(hint in line for hint in HINTS)]
    return json.loads(html.unescape(found[1])), console


@needs_browser
@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.slow)])
def test_the_page_works_without_a_network(page, tmp_path, width):
    found, console = look(page, tmp_path, width)
    assert console == []
    assert found["ready"] == "yes"
    assert found["scrollWidth"] == found["width"] == width
    assert found["wide"] == []
    assert (found["surfaces"], found["contours"]) == (2, 2)
    assert found["canvases"] >= 2
    assert found["tops"][0] > 1.5 * found["tops"][1]  # one scale for both
    assert max(found["tops"]) <= 1 + 1e-9
    assert "Loss: " in found["hover"][1]
    assert " ± 0.01" in found["hover"][1]
    assert found["lost"] >= 1
    assert found["sizes"] >= 12
    assert found["named"]
    assert found["label"] == "Cut at Random direction 2 (filter norms) = 0"
    assert found["logTops"] != found["tops"]
    assert found["bar"][0].startswith("Error (%): rise above ")
    assert found["moved"].endswith("= −1")
    assert found["single"] == 1
    assert found["title"] == "SAM"


def test_the_page_needs_no_other_file(page):
    text = page.read_text(encoding="utf-8")
    own = re.sub(r"<script>/\*\*.*?</script>", "", text, count=1, flags=re.S)
    assert "default-src 'none'" in text
    assert len(own) < 100_000
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", own)
    assert "Plotly" in text
    assert "<h1>SGD &amp; SAM</h1>" in text
    assert "<code>landscape surface a b</code>" in text


def test_the_page_has_no_button_that_uploads_it(page):
    text = page.read_text(encoding="utf-8")
    assert "showSendToCloud: false" in text
    assert text.count("displaylogo: false") == 1
    assert not re.search(r"https://[a-z.-]*(plotly\.com|plot\.ly)", text)


def test_the_page_holds_the_values_with_what_they_are(page):
    data = data_of(page)
    first = models()["sgd"]
    table = np.array(data["models"][0]["values"]["loss"], dtype=float)
    values = first.values["loss"].numpy()
    finite = np.isfinite(values)
    np.testing.assert_allclose(table[finite], values[finite], rtol=1e-6)
    assert np.isnan(table[~finite]).all()
    state = np.array(data["models"][0]["state"]["loss"])
    np.testing.assert_array_equal(state[~finite], np.where(np.isnan(values[~finite]), 2, 3))
    assert (state[finite] == 0).all()
    scale = data["metrics"]["loss"]["scales"]["linear"]
    assert scale["low"] == min(float(s.values["loss"][s.values["loss"].isfinite()].min()) for s in models().values())
    assert len(scale["ticks"]) == len(scale["texts"])
    assert data["models"][1]["paths"][0]["name"] == "SAM"


def test_the_reading_and_the_numbers_are_on_the_page(page):
    text = html.unescape(page.read_text(encoding="utf-8"))
    assert "How to read this" in text
    assert "points of 49" in text
    assert "The models have different numbers" not in text
    assert "<td>31.2</td><td>12.3</td>" in text
    assert "<td>–</td><td>0.25</td>" in text  # sharpness of one alone
    assert "Smallest Hessian eigenvalue" not in text  # of none
    assert re.search(r'class="answer (mind|wrong)"', text)


@pytest.mark.parametrize("axes", [1, 3])
def test_lines_and_volumes_have_pages(axes, tmp_path):
    surface = made(lambda *c: bowl(*c, curvature=(2.0, 1.0, 0.5)), axes=axes, points=5)
    page = write_page(surface, tmp_path / "x.html")
    assert np.shape(data_of(page)["models"][0]["values"]["loss"]) == (5,) * axes
    assert ('id="cut"' in page.read_text(encoding="utf-8")) == (axes > 1)


def test_names_cannot_break_the_page(tmp_path):
    bad = '</script><script>alert("1")</script>'
    surface = made(points=5, names=[bad, "b"], run=bad)
    page = write_page({bad: surface}, tmp_path / "x.html", title=bad).read_text(encoding="utf-8")
    assert bad not in page
    assert data_of(tmp_path / "x.html")["models"][0]["name"] == bad


def test_equal_surfaces_give_equal_pages(tmp_path):
    first, second = (write_page(models(), tmp_path / f"{n}.html").read_bytes() for n in "ab")
    assert first == second


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="`surfaces` must name at least one"):
        write_page({}, tmp_path / "x.html")
    with pytest.raises(ValueError, match=r"`surface` must be a plane \(2 axes\), got 3"):
        write_page({"a": made(points=3), "b": made(points=3, axes=3)}, tmp_path / "x.html")
    with pytest.raises(ValueError, match="`metric` must be one of"):
        write_page({"a": made(points=3), "b": made(points=3, error=False)}, tmp_path / "x.html")
    with pytest.raises(ValueError, match="no finite value"):
        write_page(made(points=4, error=False, spoil=lambda t, *_: t * float("nan")), tmp_path / "x.html")
    assert list(tmp_path.iterdir()) == []


def test_without_plotly_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(ImportError, match="pip install plotly"):
        write_page(made(points=3), tmp_path / "x.html")


def test_points_that_were_not_evaluated_are_told_apart(tmp_path):
    def unfinished(t, x, _):
        t[x > 0.4] = float("nan")
        return t

    open_ended = made(points=5, spoil=unfinished, computed=lambda x, _: x < 0.4, error=False)
    refined = made(points=5, computed=lambda x, _: x < 0.4, refined=True, error=False)
    for surface, state in ((open_ended, 4), (refined, 1)):
        data = data_of(write_page(surface, tmp_path / "x.html"))
        assert data["models"][0]["state"]["loss"] == [[0] * 5] * 3 + [[state] * 5] * 2
