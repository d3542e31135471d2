"""Study files are valid, and each page is made from files that exist."""

from pathlib import Path

import pytest
import yaml

import studies.__main__ as program
from analysis.progress import quiet
from analysis.study import Study, read_study
from studies.pages import HYPOTHESIS, PAGES
from trainers import Runtime

FOLDER = Path(program.__file__).parent
SMALL = {"train_size": 60, "validation_size": 40, "test_size": 60, "epochs": 2, "model_options": {"width": 8}}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_study_files_are_valid(path):
    study = read_study(path)
    assert study.name == path.stem
    assert len({c.run_id for c in study.configs()}) == len(study.configs())


@pytest.mark.parametrize("page", PAGES.values(), ids=lambda page: page.name)
def test_pages_name_studies_that_exist(page):
    assert all((FOLDER / f"{name}.yaml").exists() for name in page.studies)


def test_the_study_of_predictors_is_large_enough():
    configs = [c for name in PAGES["predictors"].studies for c in read_study(FOLDER / f"{name}.yaml").configs()]
    assert len(configs) >= 150
    assert len({c.model_copy(update={"seed": 0}).run_id for c in configs}) >= 40
    assert len({(c.dataset, c.label_noise) for c in configs}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["late_phase", "predictors"])
def test_a_page_is_made_from_its_studies(name, tmp_path):
    page = PAGES[name]
    folders = {}
    for study in page.studies[:1]:
        values = yaml.safe_load((FOLDER / f"{study}.yaml").read_text())
        values["base"].update(SMALL)
        values["base"].pop("evaluate_every", None)
        values["statistics"] = {**values.get("statistics", {}), "draws": 20, "permutations": 19}
        values["methods"] = values["methods"][:2] + [m for m in values["methods"] if m["method"] == "obf"]
        values["methods"] = [{**m, "rho": m["rho"][:2]} if "rho" in m else m for m in values["methods"]]
        for key, axis in values["grid"].items():
            if isinstance(axis, list):
                values["grid"][key] = axis[:2]
            else:
                axis["values"] = axis["values"][::3]  # of the late phase: all of it, and the last quarter
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
        work = Study(read_study(tmp_path / "study.yaml"), tmp_path / study, runtime=Runtime(jobs=1))
        configs = work.prepare()
        work.train(quiet)
        work.measure(quiet)
        work.correlate()
        work.write(configs)
        folders[study] = work.folder
    text = program.text(page, folders, 1)
    assert page.rule in text
    assert "old" in text  # holds, or does not hold
    assert name != "predictors" or HYPOTHESIS in text
