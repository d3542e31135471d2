import pytest

from trainers.config import train_config
from trainers.runs.loop import fit

SMALL = {
    "train_size": 80, "validation_size": 40, "test_size": 60, "label_noise": 0.2, "epochs": 4, "batch_size": 16,
    "checkpoints": [1, 2, 3], "model_options": {"width": 8, "depth": 1}, "lr": 0.1, "momentum": 0.9,
}  # fmt: skip


def trained(out, **settings):
    return fit(train_config({**SMALL, **settings}), out=out)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Runs by name; tests that write beside them copy them first."""
    out = tmp_path_factory.mktemp("runs")
    return {
        "sgd": trained(out),
        "sam": trained(out, method="sam", rho=0.1),
        "obf": trained(out, method="obf", rho=0.1),
        "wide": trained(out, model_options={"width": 12, "depth": 1}),
        "cnn": trained(out, model="resnet20", model_options={"width": 4}, epochs=2, checkpoints=[1]),
    }


@pytest.fixture
def copies(runs, tmp_path):
    """The same in a folder of the test's own."""
    import shutil

    from trainers.runs.folder import Run

    found = {}
    for name, run in runs.items():
        shutil.copytree(run.folder, tmp_path / "study" / "runs" / name)
        found[name] = Run(tmp_path / "study" / "runs" / name)
    return found
