"""The gallery: the figures of a small study's report, each with the line that draws it."""

import os
from pathlib import Path

STUDY = "LANDSCAPE_SITE_STUDY"  # the folder of a finished study, smoke's where `make site` builds the site
ABOUT = """# Gallery

Every figure that the report of the study in `studies/smoke.yaml` holds, and the line that draws it again, as PNG and as
PDF. The study is tiny: look at the kinds of figures, not at what they say. First run

```bash
landscape study studies/smoke.yaml
```
"""


def pictures() -> dict[str, Path]:
    """The file of each figure, by its place in the site; none where no study was made for it."""
    if not os.environ.get(STUDY):
        return {}
    folder = Path(os.environ[STUDY]) / "report" / "figures"
    found = {f"gallery/{path.name}": path for path in sorted(folder.glob("*.png"))}
    if not found:
        raise FileNotFoundError(f"{STUDY} names {os.environ[STUDY]}, which has no figures: run its study first.")
    return found


def pages() -> dict[str, str]:
    """The page that shows them, by its place in the site."""
    from analysis.figures.plates import FIGURES

    parts = [ABOUT]
    for place in pictures():
        name = Path(place).stem
        if name in FIGURES:
            plate = FIGURES[name]
            line = f"landscape report runs/smoke --figure {name}"
            parts.append(f"## {plate.title}\n\n```bash\n{line}\n```\n\n![{plate.alt}]({place})\n")
    return {"gallery.md": "\n".join(parts)} if parts[1:] else {}
