"""What a page of results is: a question, the rule that answers it, and what makes its text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from studies.pages.verdicts import BY_SEEDS

Folders = dict[str, Path]


@dataclass(frozen=True)
class Answer:
    """What a page says once its studies are done.

    Attributes:
        short: The answer to the question in a sentence or two, for the first lines.
        changed: What is different from the earlier page, and why.
        body: Verdicts and tables, as lines of Markdown.
    """

    short: str
    changed: str
    body: list[str]


@dataclass(frozen=True)
class Page:
    """A page of results.

    Attributes:
        name: Of the page's file.
        studies: Study files it is made from.
        title: Heading.
        claim: What is tested, and whose claim it is.
        rule: What the numbers must show for the claim to hold, not to hold, or to stay open.
        answer: Makes the rest from the studies' folders.
        decides: How the three outcomes are told apart; empty where the rule says it.
    """

    name: str
    studies: tuple[str, ...]
    title: str
    claim: str
    rule: str
    answer: Callable[[Folders], Answer]
    decides: str = BY_SEEDS
