"""The report page in a browser: on a phone, on a wide screen, on paper."""

import html
import json
import re
import shutil
import subprocess

import pytest

from analysis.figures import FIGURES

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason=f"no browser installed: none of {', '.join(NAMES)} on the path"),
    pytest.mark.xdist_group("report"),  # which draws its page once
]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--enable-logging=stderr", "--virtual-time-budget=5000",
)  # fmt: skip

# Measures the page from inside and tells the page around it, which is of another origin as every file is.
PROBE = """<script>
addEventListener("load", () => {
  const width = document.documentElement.clientWidth;
  const failed = [...document.images].filter((i) => !(i.complete && i.naturalWidth)).map((i) => i.alt);
  const all = [...document.body.querySelectorAll("*")];
  const name = (e) => e.tagName.toLowerCase() + "." + e.className + ": " + e.textContent.slice(0, 40);
  const box = (e) => e.getBoundingClientRect();
  const wide = all.filter((e) => !e.parentElement.closest(".scroll") && (box(e).right > width + 1 || box(e).left < -1));
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  const sizes = all.filter(own).map((e) => parseFloat(getComputedStyle(e).fontSize));
  parent.postMessage(JSON.stringify({
    width, scrollWidth: document.documentElement.scrollWidth, failed, wide: wide.map(name),
    images: [...document.images].map((i) => box(i).width), smallest: Math.min(...sizes),
    regions: [...document.querySelectorAll(".scroll")].filter((e) => e.scrollWidth > e.clientWidth + 1)
      .every((e) => e.tabIndex === 0 && e.getAttribute("aria-label")),
  }), "*");
});
</script>"""
FRAME = """<!doctype html><body style="margin:0"><iframe src="probe.html" style="border:0;width:{width}px;height:800px">
</iframe><pre id="found"></pre><script>
addEventListener("message", (event) => {{ document.getElementById("found").textContent = event.data; }});
</script></body>"""


def browse(profile, *arguments):
    return subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={profile}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def look(page, folder, width):
    """What the page says of itself in a frame of so many pixels, and what the console said."""
    text = page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>")
    (folder / "probe.html").write_text(text, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    done = browse(
        folder / "profile", f"--window-size={width + 200},900", "--dump-dom", (folder / "frame.html").as_uri()
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.S)
    assert found, done.stderr
    return json.loads(html.unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_sticks_out_of_the_page(page, tmp_path, width):
    found, console = look(page, tmp_path, width)
    assert found["width"] == width
    assert found["scrollWidth"] == width
    assert found["wide"] == []
    assert found["failed"] == []
    assert len(found["images"]) == len(FIGURES)
    assert min(found["images"]) > 500  # text of 9 points in a figure 5.7 inches wide is then 11 pixels or more
    assert found["smallest"] >= 9.5  # indices are the smallest
    assert found["regions"]  # what scrolls can be reached from a keyboard, and has a name
    assert console == []


def test_the_probe_sees_what_sticks_out(page, tmp_path):
    bad = tmp_path / "bad.html"
    wide = '<p class="big" style="width:900px">wide</p><img alt="broken" src="data:image/png;base64,AAAA"></body>'
    bad.write_text(page.read_text(encoding="utf-8").replace("</body>", wide), encoding="utf-8")
    found, _ = look(bad, tmp_path, 375)
    assert found["scrollWidth"] > 375
    assert [name.split(":")[0] for name in found["wide"]] == ["p.big"]
    assert found["failed"] == ["broken"]


def printed(page, folder):
    """The pages of the printed report: for each, the numbers of the images on it."""
    browse(folder / "profile", "--no-pdf-header-footer", f"--print-to-pdf={folder / 'out.pdf'}", page.as_uri())
    text = (folder / "out.pdf").read_bytes()
    objects = dict(re.findall(rb"\n(\d+) 0 obj\n(.*?)\nendobj", text, re.S))
    images = {number for number, body in objects.items() if re.search(rb"/Subtype\s*/Image", body[:400])}
    pages = [body for body in objects.values() if re.search(rb"/Type\s*/Page\b", body)]
    return [set(re.findall(rb"/X\d+ (\d+) 0 R", body)) & images for body in pages]


def test_print_keeps_every_figure_whole(page, tmp_path):
    pages = printed(page, tmp_path)
    shown = [image for images in pages for image in images]
    assert len(shown) == len(set(shown)) == len(FIGURES)  # an image cut in two would be on two pages
    assert len(FIGURES) / 2 <= len(pages) <= 2 * len(FIGURES)
