"""The commands: where each one is, what its help says first, and examples."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Command:
    """A command of the program.

    Attributes:
        place: The module of `analysis.cli`, and the function in it; imported when the command is used.
        help: One line.
        examples: Whole command lines, shown at the end of its help.
        first: The options that matter most, at most ten, in the order in which the help shows them.
        shared: Whether processes of `torchrun` share its work.
    """

    place: str
    help: str
    examples: tuple[str, ...]
    first: tuple[str, ...] = ()
    shared: bool = False

    def function(self) -> Callable[..., int]:
        """What the command calls."""
        module, _, name = self.place.partition(".")
        function: Callable[..., int] = getattr(import_module(f"analysis.cli.{module}"), name)
        return function


COMMANDS: dict[str, Command] = {
    "study": Command(
        "study.study",
        "Run a study: train, measure, relate to generalisation, report.",
        examples=(
            "landscape study studies/smoke.yaml",
            "landscape study mine.yaml --dry-run --trust",
            "landscape study studies/digits.yaml --out runs/mine --jobs 4 --time-limit 02:00:00",
        ),
        first=("out", "dry-run", "device", "jobs", "trust", "time-limit", "shard", "extend", "track", "download"),
    ),
    "train": Command(
        "train.train",
        "Train one run, or continue it.",
        examples=(
            "landscape train --method sam --rho 0.1 --train-size 400 --label-noise 0.2 --epochs 20",
            "landscape train --dataset cifar10:data/cifar --model resnet20 --augment crop flip --device cuda",
            "landscape train --method asam --rho-search",
        ),
        first=("dataset", "model", "method", "rho", "lr", "epochs", "batch-size", "seed", "out", "device"),
        shared=True,
    ),
    "measure": Command(
        "measure.measure",
        "Measure checkpoints of runs, or weights from elsewhere.",
        examples=(
            "landscape measure runs/smoke",
            "landscape measure runs/smoke --measures hessian_trace mine:kurtosis --cost",
            "landscape measure weights.pt --model mymodels:make --dataset digits",
        ),
        first=("measures", "out", "cost", "examples", "set", "all-checkpoints", "model", "dataset", "device", "jobs"),
        shared=True,
    ),
    "correlate": Command(
        "correlate.correlate",
        "Relate measures to generalisation.",
        examples=(
            "landscape correlate runs/smoke",
            "landscape correlate runs/smoke --targets test_error --top 5 --draws 500",
            "landscape correlate folder_of_weights --settings runs.csv",
        ),
        first=("targets", "measures", "top", "controls", "interval", "level", "draws", "permutations", "settings"),
    ),
    "compare": Command(
        "compare.compare",
        "Compare the methods of a study, paired by seed.",
        examples=(
            "landscape compare runs/smoke --baseline sgd",
            "landscape compare runs/mine --by label_noise --target test_error",
        ),
        first=("baseline", "group", "by", "target", "choose", "level"),
    ),
    "report": Command(
        "report.report",
        "Write the report of a finished study again.",
        examples=(
            "landscape report runs/smoke",
            "landscape report runs/smoke --figure forest --medium icml --font serif",
            "landscape report runs/smoke --explore-with runs/digits",
        ),
        first=("figure", "medium", "measures", "labels", "font", "explore-with"),
    ),
    "surface": Command(
        "surface.surface",
        "Draw the loss surface around a model, or between models.",
        examples=(
            "landscape surface runs/smoke/runs/RUN",
            "landscape surface RUN --axes top bottom --points 41",
            "landscape surface RUN OTHER --between line --align",
        ),
        first=("axes", "between", "points", "radius", "metrics", "examples", "out", "cost", "device", "jobs"),
        shared=True,
    ),
    "list": Command(
        "listing.list_names",
        "Show what there is: methods, measures, models, datasets, tasks, figures, statistics.",
        examples=(
            "landscape list methods",
            "landscape list measures --task regression",
            "landscape list measures | cut -f1",
        ),
    ),
    "init": Command(
        "init.init",
        "Write a study with data and a measure of your own, to start from.",
        examples=("landscape init mine && cd mine && landscape study study.yaml --trust",),
    ),
    "check-task": Command(
        "check_task.check",
        "Try whether a task of one's own is as a task must be.",
        examples=("landscape check-task mytasks:Ranking --dataset mydata:load",),
    ),
    "completion": Command(
        "completion.completion",
        "Print what makes a shell complete commands, options and choices.",
        examples=(
            'eval "$(landscape completion bash)"     # for this shell; in ~/.bashrc for all',
            'eval "$(landscape completion zsh)"',
        ),
    ),
}
