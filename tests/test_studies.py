"""Study files are valid, and each page is made from files that exist."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import studies.__main__ as program
from analysis.progress import quiet
from analysis.study import Study, read_study
from studies.pages import PAGES, transfer
from studies.pages.verdicts import SAID
from trainers import Runtime
from trainers.weights.places import META, PARAMS

FOLDER = Path(program.__file__).parent
SMALL = {"train_size": 60, "validation_size": 40, "test_size": 60, "epochs": 2, "model_options": {"width": 8}}


def make_initial_weights(path):
    """Weights that whoever runs the study has: a file, or runs of another study."""
    values = yaml.safe_load(path.read_text())
    for place in {Path(part["init"]) for part in (values["base"], *values["methods"]) if "init" in part}:
        checkpoint = place.parent if place.suffix else place / "checkpoints" / "1"
        checkpoint.mkdir(parents=True, exist_ok=True)
        save_file({"w": torch.zeros(1)}, place if place.suffix else checkpoint / PARAMS)
        if not place.suffix:
            (checkpoint / META).write_text("{}")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_study_files_are_valid(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_initial_weights(path)
    study = read_study(path)
    assert study.name == path.stem
    assert len({c.run_id for c in study.configs()}) == len(study.configs())


@pytest.mark.parametrize("page", PAGES.values(), ids=lambda page: page.name)
def test_pages_name_studies_that_exist(page):
    assert all((FOLDER / f"{name}.yaml").exists() for name in page.studies)


def test_the_study_of_predictors_is_large_enough():
    for name in PAGES["predictors"].studies:
        configs = read_study(FOLDER / f"{name}.yaml").configs()
        assert len({c.model_copy(update={"seed": 0, "data_seed": 0}).run_id for c in configs}) == 28
        assert len({(c.lr, c.batch_size) for c in configs}) == 4
        assert len({c.data_seed for c in configs}) == 4


@pytest.mark.parametrize("page", PAGES.values(), ids=lambda page: page.name)
def test_pages_are_made_of_fresh_draws_of_the_data(page, tmp_path, monkeypatch):
    """Seeds of earlier pages and of the default study are 0 to 7, those of first looks 100 and more."""
    monkeypatch.chdir(tmp_path)
    for name in page.studies:
        make_initial_weights(FOLDER / f"{name}.yaml")
    configs = [c for name in page.studies for c in read_study(FOLDER / f"{name}.yaml").configs()]
    assert all(c.data_seed == c.seed for c in configs)
    assert {c.seed for c in configs} <= set(range(10, 100))


@pytest.mark.parametrize("name", ["efficiency", "label_noise", "late_phase", "obf", "spurious"])
def test_sgd_has_a_run_of_twice_the_epochs_and_one_that_is_radius_zero_of_the_others(name):
    configs = read_study(FOLDER / f"{name}.yaml").configs()
    plain = [c for c in configs if c.method == "sgd"]
    assert {c.epochs / configs[0].epochs for c in plain} >= {1, 2}
    perturbed = [c for c in configs if c.rho is not None]
    assert {c.lr for c in perturbed} <= {c.lr for c in plain if c.epochs == perturbed[0].epochs}


def test_the_study_of_transfer_starts_from_every_network_of_its_source():
    """The committed file names the runs of the source by their ids, which depend on its settings."""
    assert (FOLDER / "transfer.yaml").read_text() == transfer.study_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["late_phase"])
def test_a_page_is_made_from_its_studies(name, tmp_path):
    page = PAGES[name]
    folders = {}
    for study in page.studies:
        values = yaml.safe_load((FOLDER / f"{study}.yaml").read_text())
        values["base"].update(SMALL)
        values["base"].pop("evaluate_every", None)
        values["methods"] = [{**m, "rho": m["rho"][:1]} for m in values["methods"] if "rho" in m] + values["methods"][
            :1
        ]
        values["grid"]["seed"] = values["grid"]["seed"][:2]
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
        work = Study(read_study(tmp_path / "study.yaml"), tmp_path / study, runtime=Runtime(jobs=1))
        configs = work.prepare()
        work.train(quiet)
        work.measure(quiet)
        work.write(configs)
        folders[study] = work.folder
    text = program.text(page, folders, 1)
    assert page.rule in text
    assert page.decides in text
    assert text.index("Is it enough") < text.index(page.claim)  # the answer comes first
    assert any(outcome in text for outcome in SAID.values())
    assert "What the design could see" in text
