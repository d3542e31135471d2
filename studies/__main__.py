"""Run studies of this folder and write their pages: `python -m studies [NAME ...]`; what is done is kept."""

import argparse
import sys
import time
from pathlib import Path

from analysis.progress import track
from analysis.study import Study, environment, read_study
from studies.pages import PAGES, Page
from trainers import Runtime

HERE = Path(__file__).parent
RULES, GRIDS = "dea33b9", "392859e"  # commits of the rules, and of the last change of a grid before its first run
# commits of the rules and grids of pages that came later
LATER = {
    "fashion_mnist": "08625a4",
    "transfer": "739ab94",
    "graphs": "60c85f2",
    "tabular": "dc515ab",
    "language": "a9c94d5",
}
EXTENDED = {"efficiency": "af23124", "label_noise": "398ad33"}  # of grids extended later, by validation data alone


def run(page: Page, out: Path, jobs: int | None) -> dict[str, Path]:
    """Take every study of a page to its report; returns their folders by name."""
    folders = {}
    for name in page.studies:
        command = f"python -m studies {page.name}"
        work = Study(read_study(HERE / f"{name}.yaml"), out / name, runtime=Runtime(jobs=jobs), command=command)
        work.all(track, extend=True)
        folders[name] = work.folder
    return folders


def text(page: Page, folders: dict[str, Path], jobs: int | None) -> str:
    """The page as Markdown."""
    spent = {name: sum(Study.open(folder).seconds.values()) for name, folder in folders.items()}
    machine = environment()
    answer = page.answer(folders)
    later = EXTENDED.get(page.name)
    rules, grids = (LATER[page.name],) * 2 if page.name in LATER else (RULES, GRIDS)
    extended = f"; after it the grid was extended once ({later}), by the validation error alone" if later else ""
    lines = [
        f"# {page.title}",
        "",
        f"**{answer.short}**" if "**" not in answer.short else answer.short,
        "",
        page.claim,
        "",
        f"**Rule, fixed beforehand.** {page.rule}",
        "",
        *([page.decides, ""] if page.decides else []),
        f"**What changed.** {answer.changed}",
        "",
        "\n".join(answer.body).strip("\n"),
        "",
        "The verdicts above are those of the rule; the tables stand beside them and are exploratory.",
        "",
        "## How it was made",
        "",
        f"`python -m studies {page.name}` ({', '.join(f'`studies/{name}.yaml`' for name in page.studies)}), "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, {machine['processor']}, {jobs or machine['cores']} processes, "
        f"torch {machine['torch']}, commit {machine['commit']}; the rule is of commit {rules} and the grid of {grids} "
        f"at the latest, both before the first run{extended}. Training, measuring and statistics took "
        f"{sum(spent.values()) / 60:.0f} min on a shared machine.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[*PAGES, []], metavar="NAME", help=f"of {', '.join(PAGES)}; all if none"
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the studies' folders")
    parser.add_argument("--jobs", type=int, help="processes; one a core if left out")
    given = parser.parse_args()
    for name in given.names or PAGES:
        page = PAGES[name]
        folders = run(page, given.out, given.jobs)
        path = HERE / f"{name}.md"
        path.write_text(text(page, folders, given.jobs), encoding="utf-8")
        print(f"page: {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
