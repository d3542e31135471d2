"""Commands under `torchrun`, as a user starts them: one launch of two ranks for all, against one process."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis.cli import main
from trainers import Run

SCRIPT = Path(__file__).with_name("ranks_script.py")
ROOT = Path(__file__).parents[2]
TRAIN = (
    "train --train-size 90 --validation-size 20 --test-size 20 --method sam --sharing global --batch-size 16 "
    "--precision float64 --epochs 2 --model-options width 8 --augment crop"
)
SHARED = "hessian_eigenvalues hessian_trace adaptive_curvature gauss_newton effective_dimension spectrum"
WHOLE = "empirical_fisher norms m_sharpness targets example_forgetting"
SURFACE = "--axes random --points 5 --examples 40"


def here(command):
    with pytest.raises(SystemExit) as end:
        main(command.split())
    return end.value.code


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_two_ranks_train_measure_and_scan_as_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert here(f"{TRAIN} --out one") == 0
    run = Run(next(Path("one").glob("*/config.json")).parent)
    there = f"two/{run.run_id}"
    commands = [
        f"{TRAIN} --out two --workers 1",
        f"measure {there} --measures {SHARED} {WHOLE} --examples all",
        f"measure {there} --measures hessian_trace --set hessian_trace.draws=-1 --out failed.parquet",
        f"surface {there} {SURFACE}",
        f"report {there}",
    ]
    Path("commands").write_text("\n".join(commands))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launch, "commands"], env=environment, capture_output=True, text=True, timeout=280)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    codes = [[Path(f"{i}.{rank}.txt").read_text().rpartition("exit code ")[2] for rank in "01"] for i in range(5)]
    assert codes == [["0", "0"], ["0", "0"], ["1", "1"], ["0", "0"], ["2", "2"]], said[-3000:]
    assert Path("1.1.txt").read_text() == "exit code 0"  # the leader alone speaks
    assert said.count("`landscape report` works in one process, and torchrun started 2: start it without") == 1
    other = Run(Path(there))
    for name in ("loss", "test_loss", "test_error"):
        assert other.history()[name].tolist() == pytest.approx(run.history()[name].tolist(), rel=1e-9)
    assert here(f"measure {run.folder} --measures {SHARED} {WHOLE} --examples all --jobs 1") == 0
    one, two = (pd.read_parquet(r.folder / "measures.parquet") for r in (run, other))
    assert one[["measure", "split", "options"]].equals(two[["measure", "split", "options"]])
    assert two["value"].notna().all()
    for column in ("value", "stderr"):
        assert two[column].tolist() == pytest.approx(one[column].tolist(), rel=1e-5, abs=1e-8, nan_ok=True)
    assert here(f"surface {run.folder} {SURFACE}") == 0
    assert len(list(Path(there).glob("surfaces/*.npz"))) == len(list(run.folder.glob("surfaces/*.npz"))) == 1
