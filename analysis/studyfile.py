"""A study file: what it may say, and what of it is checked before the first run."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from analysis.measures.catalogue.targets import TARGETS
from analysis.measures.plan import plan
from analysis.measures.registry import entry_of, names
from analysis.style import method_label
from analysis.surfaces.recipe import recipe
from landscape.naming import nearest
from trainers.config import Strict, TrainConfig
from trainers.data.shifted import check_shifted
from trainers.files.reading import read_yaml
from trainers.reference import is_reference, load_reference
from trainers.sharpness_aware.methods.own import import_methods
from trainers.sweep.conditions import Condition
from trainers.sweep.running import expand
from trainers.sweep.search import RandomSearch
from trainers.tasks.registry import learns_labels
from trainers.weights.known import remember

Options = dict[str, Any]
SPLITS = ("train_", "validation_", "test_", "gap_")  # that begin the names of scores


class Trajectory(Strict):
    """What is measured at the checkpoints before the last one."""

    measures: dict[str, Options | None] = Field(default_factory=dict)
    """Measures with their options."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Only runs whose configuration has these values, such as {seed: 0}; as `when` of a grid."""

    @property
    def condition(self) -> Condition | None:
        """`where`; None takes all runs."""
        return Condition.parse("trajectory.where", self.where) if self.where else None


class Statistics(Strict):
    """How measures are related to generalisation."""

    draws: Annotated[int, Field(ge=0)] = 2000
    """Bootstrap resamples of configurations."""
    permutations: Annotated[int, Field(ge=0)] | None = None
    """Permutations for p-values; None is 100,000 for up to 100 configurations and 10,000 for more."""
    correction: Literal["max-T", "holm"] = "max-T"
    """How p-values are corrected for the number of measures tried."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the intervals."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of resampling."""
    lead: str | None = None
    """Target that the report leads with; None is the gap in error."""
    compare: list[tuple[str, str]] = Field(default_factory=list)
    """Pairs (forgetting, sharpness) whose correlation with generalisation is compared; fixed before the study runs."""
    representatives: dict[str, str] = Field(default_factory=dict)
    """For a family of measures, such as sharpness, the one that stands for it in the report; named before the study
    runs. A family that is not named has the usual one."""


class Surfaces(Strict):
    """Loss surfaces of a run of each of some methods, on common axes and one scale."""

    methods: Annotated[list[str], Field(min_length=1)] = Field(default=["sgd", "sam", "obf"])
    """Labels of methods; of each the configuration that validation data choose, at its first seed."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of the surface: axes, points, radius, ... (`landscape surface --help`)."""


class StudyConfig(Strict):
    """A study file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the folder of the study."""
    question: str = ""
    """What the study is to answer, for the report."""
    base: dict[str, Any] = Field(default_factory=dict)
    """Configuration common to all runs."""
    grid: dict[str, Any] = Field(default_factory=dict)
    """Keys with the values that are crossed, such as lr or model_options.width; with a condition {values:, when:}."""
    methods: list[dict[str, Any]] = Field(default=[{}])
    """Methods with their own grids."""
    random: RandomSearch | None = None
    """Keys whose values are drawn at random, beside the grid; None draws none."""
    measures: dict[str, Options | None] | None = None
    """Measures of each run's last checkpoint; None takes the usual ones."""
    weights: Literal["last", "best", "average"] | None = None
    """Which weights of each run are measured: those of its last checkpoint (also None), of the one with the best
    validation error, for runs with keep_best, or the average, for runs with average."""
    examples: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    """Training examples that measures go through; None is a draw of 2,048 where there are more."""
    trajectory: Trajectory = Field(default_factory=Trajectory)
    """Measures along training."""
    statistics: Statistics = Field(default_factory=Statistics)
    """How measures are related to generalisation."""
    surfaces: Surfaces | None = None
    """Loss surfaces for the report; None draws none."""
    shifted: dict[str, str] = Field(default_factory=dict)
    """Shifted test sets from elsewhere by name, each a target: folders, or data sets by name."""

    def check(self, *, trust: bool = False) -> None:
        """Check before the first run what would fail after the last one: statistics, surfaces, and what they name.

        Args:
            trust: Import measures, metrics of surfaces and shifted sets that are named as module:function.

        Raises:
            ValueError: Naming the key.
            PermissionError: For a module:function without `trust`.
        """
        taken = plan(self.measures, examples=self.examples, trust=trust)
        plan(self.trajectory.measures, examples=self.examples, trust=trust)
        check_shifted(self.shifted, trust=trust)
        if "targets" not in taken:
            raise ValueError("`measures` lacks targets, which all others are related to: add `targets: {}`.")
        if set(taken) <= {"targets", "baselines"}:
            raise ValueError("`measures` has nothing beside targets that might explain them: name one more.")
        configs = self.configs()
        needed = {"best": ("keep_best", False), "average": ("average", None)}
        if self.weights in needed:
            key, without = needed[self.weights]
            if lacking := sum(getattr(c, key) == without for c in configs):
                raise ValueError(
                    f"`weights` is {self.weights!r}, and {lacking} of {len(configs)} runs are trained without `{key}`: "
                    f"set it in `base`, or leave `weights` out."
                )
        own = any(not learns_labels(c.task) for c in configs)  # whose scores nobody knows before they are made
        compared = dict.fromkeys(name for pair in self.statistics.compare for name in pair)
        for key, chosen in (("compare", compared), ("representatives", self.statistics.representatives.values())):
            for name in chosen:
                scored = own and name.startswith(SPLITS)
                if entry_of(measure := name.partition("[")[0]) is None and not scored:
                    raise ValueError(
                        f"`statistics.{key}` names {name!r}, which is no measure.{nearest(measure, names())}"
                    )
        from analysis.statistics.families import check_representatives  # statistics are slow to import

        check_representatives("statistics.representatives", self.statistics.representatives)
        lead = self.statistics.lead
        if lead is not None and not own and lead.partition("[")[0] not in TARGETS:
            raise ValueError(
                f"`statistics.lead` must be a target, one of {', '.join(TARGETS)}, got {lead!r}."
                f"{nearest(lead, TARGETS)}"
            )
        where = self.trajectory.condition
        if where is not None and self.trajectory.measures and not any(where.holds(c.model_dump()) for c in configs):
            raise ValueError(f"`trajectory.where` {where} is met by no run of the study: change it or leave it out.")
        if self.surfaces is not None:
            self._check_surfaces(self.surfaces, configs, trust=trust)

    def _check_surfaces(self, wanted: "Surfaces", configs: Sequence[TrainConfig], *, trust: bool) -> None:
        drawn = recipe(**wanted.options)
        labels = {method_label(c.method, c.ascent) for c in configs}
        if unknown := [name for name in wanted.methods if name not in labels]:
            raise ValueError(f"`surfaces.methods` has {unknown}, which the study does not train: {sorted(labels)}.")
        if "validation" in drawn.splits and not all(c.validation_size for c in configs):
            raise ValueError("`surfaces.options` draws the split validation, but `validation_size` is 0: leave it out.")
        for name in filter(is_reference, drawn.metrics):
            load_reference(name, trust=trust)

    def configs(self) -> list[TrainConfig]:
        """All runs of the study.

        Raises:
            ValueError: For an empty grid, or a configuration that is not valid.
        """
        return expand(self.base, self.grid, self.methods, random=self.random)

    def in_populations(self) -> "StudyConfig":
        """The same study with `executor` "population" for all runs that are not told otherwise."""
        return self.model_copy(update={"base": {**self.base, "executor": "population"}})

    def recall(self, folder: Path) -> None:
        """Look up the hashes of weights that runs in the study's folder began from: their files may be gone."""
        given = [self.base, self.grid, *self.methods, *(one for one in (self.random and self.random.space,) if one)]
        if any("init" in keys for keys in given):
            remember(folder)

    @property
    def digest(self) -> str:
        """A hash of the study, to tell whether a folder belongs to it."""
        values = self.model_dump(mode="json")
        for later in ("random", "surfaces", "weights", "examples"):  # folders made before these keys still belong
            if values[later] is None:
                del values[later]
        if not values["shifted"]:
            del values["shifted"]
        statistics = values["statistics"]
        if statistics["permutations"] is None:
            statistics["permutations"] = 9999  # the earlier default
        if statistics["correction"] == "max-T":
            del statistics["correction"]
        if not statistics["representatives"]:
            del statistics["representatives"]
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_study(path: str | Path, *, trust: bool = False, folder: Path | None = None) -> StudyConfig:
    """Read and check a study file.

    Args:
        path: The file.
        trust: Import methods, measures, metrics of surfaces and shifted sets that it names as module:function.
        folder: Of the study, where it is not runs/<name>: initial weights that are gone are known from its runs.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not YAML, or not a study; every problem is named.
        PermissionError: If it names one as module:function, without `trust`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a study file, such as studies/digits.yaml.")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no study: it must hold keys such as name, base, grid and methods.")
    import_methods(values, trust=trust)
    study = StudyConfig.parse(values, where=str(path))
    assert isinstance(study, StudyConfig)
    study.recall(folder or Path("runs") / study.name)
    try:
        study.check(trust=trust)
    except (ValueError, PermissionError) as error:
        raise type(error)(f"{path}: {error}") from error
    return study
