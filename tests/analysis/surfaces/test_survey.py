import itertools
import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis.cli import main
from analysis.curves import surface
from analysis.surfaces import computing, sheets
from analysis.surfaces.journal import Writer
from analysis.surfaces.places import checkpoint_of, chosen_examples
from analysis.surfaces.recipe import recipe
from analysis.surfaces.sheets import Sheet, file_of
from analysis.surfaces.survey import read_survey, survey, time_needed
from landscape.ranks import Ranks
from trainers import Runtime
from trainers.files.lock import BusyError, Lock, _take, locked
from trainers.runs.checkpoint import load_checkpoint, save_checkpoint
from trainers.runs.folder import load_data

PLANE = {"points": 5, "examples": 40, "numbers": False}


def plane(run, **more):
    return surface(run.folder, **{**PLANE, **more}).sheets[0]


def bytes_of(sheet):
    return sheet.file.read_bytes()


def by_hand(run, sheet, point, split="train"):
    """Loss and error at a point, from the model itself and directions read from what the sheet's recipe says."""
    from analysis.surfaces.drawing import draw
    from analysis.surfaces.places import surface_risks

    chosen = recipe(**sheet.surface.context["recipe"])
    subject = checkpoint_of(run.folder).load(chosen.seed)
    risks = surface_risks(subject, chosen)
    axes = draw(subject, next(iter(risks.values())), chosen).axes
    model, _ = load_checkpoint(run.checkpoint(max(run.checkpoints())))
    with torch.no_grad():
        for name, p in model.named_parameters():
            for a, axis in zip(point, axes.axes, strict=True):
                if name in axis.direction:
                    p += a * axis.direction[name]
    part = chosen_examples(getattr(load_data(run.config()), split), split, chosen)
    with torch.no_grad():
        out = model(part.x)
    return float(F.cross_entropy(out, part.y)), float((out.argmax(1) != part.y).float().mean())


def test_every_point_is_the_model_at_that_place(copies):
    sheet = plane(copies["sam"])
    found = sheet.surface
    assert found.metrics == ["train loss", "train error", "test loss", "test error"]
    assert found.grid.shape == (5, 5)
    assert bool(found.computed.all())
    for i, point in enumerate(found.grid.points()):
        for split in ("train", "test"):
            loss, error = by_hand(copies["sam"], sheet, point, split)
            at = np.unravel_index(i, (5, 5))
            assert float(found.values[f"{split} loss"][at]) == pytest.approx(loss, rel=1e-5)
            assert float(found.values[f"{split} error"][at]) == pytest.approx(error, abs=1e-7)
    for name in found.metrics:
        assert found.centre[name][0] == pytest.approx(float(found.values[name][2, 2]), rel=1e-6)


def test_the_examples_are_a_random_subset_named_by_the_seed(copies):
    run = copies["sgd"]
    train = load_data(run.config()).train
    one = chosen_examples(train, "train", recipe(examples=40))
    assert len(one) == 40
    place = {int(index): i for i, index in enumerate(train.index)}
    places = [place[int(index)] for index in one.index]
    assert places == sorted(set(places))
    assert not torch.equal(one.index, train.index[:40])
    assert torch.equal(one.index, chosen_examples(train, "train", recipe(examples=40)).index)
    assert not torch.equal(one.index, chosen_examples(train, "train", recipe(examples=40, seed=1)).index)
    assert len(chosen_examples(train, "train", recipe(examples=None))) == len(train)


def test_processes_give_the_bytes_of_one(copies, monkeypatch):
    whole = bytes_of(plane(copies["sam"], jobs=1))
    file_of(checkpoint_of(copies["sam"].folder), recipe(**PLANE)).unlink()
    monkeypatch.setattr(computing, "START_SECONDS", 0.0)
    monkeypatch.setattr(computing, "BUNDLE_SECONDS", 0.001)
    assert bytes_of(plane(copies["sam"], jobs=2)) == whole


def test_a_second_call_reads_what_is_there(copies, monkeypatch):
    whole = bytes_of(plane(copies["sam"]))

    def never(*_):
        raise AssertionError("evaluated again")

    monkeypatch.setattr(computing, "evaluate", never)
    assert bytes_of(plane(copies["sam"])) == whole


@pytest.mark.parametrize("kept", [0, 1, 3, 6])
def test_what_was_done_before_a_stop_is_not_done_again(copies, monkeypatch, kept):
    add, evaluate = Writer.add, computing.evaluate
    counts = itertools.count()
    evaluated = []
    monkeypatch.setattr(computing, "evaluate", lambda t, b, d, **o: evaluated.extend(b) or evaluate(t, b, d, **o))
    whole = bytes_of(plane(copies["sgd"], points=21, jobs=1))
    blocks = len(evaluated)
    assert blocks > 7  # the centre, and 441 points a few at a time
    evaluated.clear()
    file = file_of(checkpoint_of(copies["sgd"].folder), recipe(**{**PLANE, "points": 21}))
    file.unlink()

    def stopped(self, groups):
        if next(counts) == kept:
            raise KeyboardInterrupt
        add(self, groups)

    monkeypatch.setattr(Writer, "add", stopped)
    monkeypatch.setattr(computing, "BUNDLE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        plane(copies["sgd"], points=21, jobs=1)
    assert not file.exists()
    evaluated.clear()
    monkeypatch.setattr(Writer, "add", add)
    assert bytes_of(plane(copies["sgd"], points=21, jobs=1)) == whole
    assert len(evaluated) == blocks - kept
    assert not file.with_suffix(".parts").exists()


def test_several_models_are_drawn_on_common_axes(copies):
    found = surface(*(copies[n].folder for n in ("sgd", "sam", "obf")), **PLANE)
    assert [s.name for s in found.sheets] == ["sgd", "sam", "obf"]
    seeds = {s.surface.axes[0]["recipe"]["seed"] for s in found.sheets}
    assert len(seeds) == 1
    grids = [s.surface.grid.coordinates[0] for s in found.sheets]
    assert all(torch.equal(g, grids[0]) for g in grids)


def test_eigenvector_planes_of_several_models_have_one_reach(copies):
    found = surface(copies["sgd"].folder, copies["sam"].folder, **{**PLANE, "axes": ("top", "bottom"), "points": 3})
    first, second = (s.surface for s in found.sheets)
    assert torch.equal(first.grid.coordinates[0], second.grid.coordinates[0])
    assert first.axes[0]["recipe"]["eigenvalue"] != second.axes[0]["recipe"]["eigenvalue"]
    assert first.axes[0]["length"] == pytest.approx(1)


def test_other_architectures_are_refused(copies):
    with pytest.raises(ValueError, match=r"differ in architecture: .* shape \(8,\) in the first and \(12,\) in"):
        surface(copies["sgd"].folder, copies["wide"].folder, **PLANE)


def test_a_trajectory_ends_at_the_model_and_says_how_far_it_is_off_the_plane(copies):
    found = surface(copies["sam"].folder, copies["sgd"].folder, **{**PLANE, "axes": ("pca", "pca")})
    (sheet,) = found.sheets
    own, other = (p.table for p in sheet.paths)
    run = copies["sam"]
    steps = list(run.checkpoints())
    assert own["step"].tolist() == steps
    assert own.iloc[-1][["a1", "a2", "distance"]].abs().max() < 1e-6
    assert own["plane_loss"].iloc[-1] == pytest.approx(own["loss"].iloc[-1], rel=1e-5)
    assert {"p1", "p2"} <= set(own.columns)
    assert not {"p1", "p2"} & set(other.columns)
    assert other["distance"].iloc[-1] > 0.1
    chosen = recipe(**sheet.surface.context["recipe"])
    model, _ = load_checkpoint(run.checkpoint(steps[1]))
    part = chosen_examples(load_data(run.config()).train, "train", chosen)
    with torch.no_grad():
        assert own["loss"][1] == pytest.approx(float(F.cross_entropy(model(part.x), part.y)), rel=1e-5)
    explained = sheet.surface.context["explained"]
    assert sum(explained) == pytest.approx(1)
    assert sheet.surface.context["explained_null"][0] > 0.5
    low, high = (float(sheet.surface.grid.coordinates[0][i]) for i in (0, -1))
    assert low < own["a1"].min() <= own["a1"].max() < high


def test_perturbations_as_axes(copies):
    sheet = plane(copies["sam"], axes=("own", "obf"), points=3)
    axis = sheet.surface.axes[0]
    assert axis["length"] == pytest.approx(0.1, rel=1e-5)
    assert sheet.surface.grid.coordinates[0].tolist() == [-2.0, 0.0, 2.0]
    rise = float(sheet.surface.values["train loss"][2, 1] - sheet.surface.values["train loss"][1, 1])
    assert rise > 0
    wider = plane(copies["sam"], axes="sam", points=3, rho=0.4)
    assert wider.surface.axes[0]["length"] == pytest.approx(0.4, rel=1e-5)


def test_batchnorm_modes(copies):
    eval_, batch, again = (
        plane(copies["cnn"], axes="random", points=3, mode=mode) for mode in ("eval", "batch", "recalibrate")
    )
    ends = [float(s.surface.values["train loss"][2]) for s in (eval_, batch, again)]
    assert len({round(e, 6) for e in ends}) == 3
    assert [s.surface.context["mode"] for s in (eval_, batch, again)] == ["eval", "batch", "recalibrate"]


def test_refinement_keeps_the_values_it_computes(copies):
    coarse = plane(copies["sam"], axes="random", points=33, refine=0.02).surface
    fine = plane(copies["sam"], axes="random", points=33).surface
    assert 3 < int(coarse.computed.sum()) < 33
    for name in fine.metrics:
        torch.testing.assert_close(
            coarse.values[name][coarse.computed], fine.values[name][coarse.computed], rtol=1e-6, atol=1e-7
        )


def test_a_model_that_goes_to_infinity_has_marked_points(copies):
    found = plane(copies["sgd"], axes="random", points=3, radius=1e37).surface
    values = found.values["train loss"]
    assert not bool(values[[0, 2]].isfinite().all())
    assert float(values[1]) == pytest.approx(found.centre["train loss"][0], rel=1e-6)
    assert bool(found.computed.all())


def test_the_line_between_two_models_and_its_barrier(copies):
    found = surface(
        copies["sgd"].folder, copies["sam"].folder, **{**PLANE, "between": "line", "points": 9, "align": True}
    )
    assert [s.name for s in found.sheets] == ["line", "line, aligned"]
    line, aligned = (s.surface for s in found.sheets)
    for run, at in (("sgd", 0.0), ("sam", 1.0)):
        model, _ = load_checkpoint(copies[run].checkpoint(max(copies[run].checkpoints())))
        part = chosen_examples(load_data(copies["sgd"].config()).train, "train", recipe(**PLANE))
        with torch.no_grad():
            loss = float(F.cross_entropy(model(part.x), part.y))
        where = int((line.grid.coordinates[0] == at).nonzero())
        assert float(line.values["train loss"][where]) == pytest.approx(loss, rel=1e-5)
        assert float(aligned.values["train loss"][where]) == pytest.approx(loss, rel=1e-4)
    inside = (line.grid.coordinates[0] >= 0) & (line.grid.coordinates[0] <= 1)
    a, values = line.grid.coordinates[0][inside], line.values["train loss"][inside]
    expected = float((values - ((1 - a) * values[0] + a * values[-1])).max())
    assert line.context["between"]["train loss"]["B_lin"]["value"] == pytest.approx(expected, abs=1e-12)
    assert aligned.context["passage"]["distance"] <= line.context["passage"]["distance"]
    again = surface(
        copies["sgd"].folder, copies["sam"].folder, **{**PLANE, "between": "line", "points": 9, "align": True}
    )
    assert [s.file for s in again.sheets] == [s.file for s in found.sheets]


def test_a_curve_between_two_models(copies):
    found = surface(copies["sgd"].folder, copies["sam"].folder, **{**PLANE, "between": "bezier", "points": 9})
    line, curve = (s.surface for s in found.sheets)
    told = curve.context["between"]["train loss"]
    assert told["max"]["value"] <= float(line.values["train loss"].max())
    assert told["length"] >= told["straight"]
    assert len(curve.grid) == 61


def test_a_curve_needs_one_that_fits_it(copies):
    places = [checkpoint_of(copies[name].folder) for name in ("sgd", "sam")]
    with pytest.raises(ValueError, match=r"`fit` is needed for `between` 'bezier': give `analysis.curves.fitted`"):
        survey(places, recipe(between="bezier", seed=1))


def test_the_plane_through_three_models(copies):
    found = surface(*(copies[n].folder for n in ("sgd", "sam", "obf")), **{**PLANE, "between": "plane"})
    (sheet,) = found.sheets
    for path in sheet.paths:
        row = path.table.iloc[0]
        assert row["plane_loss"] == pytest.approx(row["loss"], rel=1e-4)
    assert sheet.surface.gram[0, 1] == pytest.approx(0, abs=1e-4)


def test_weights_from_elsewhere(copies, tmp_path):
    run = copies["sgd"]
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes((run.checkpoint(max(run.checkpoints())) / "params.safetensors").read_bytes())
    config = run.config()
    data = {
        "name": "digits", "train_size": 80, "validation_size": 40, "test_size": 60, "label_noise": 0.2,
        "seed": config.data_seed,
    }  # fmt: skip
    found = surface(weights, model="mlp", model_options={"width": 8, "depth": 1}, data=data, **PLANE)
    own = plane(run)
    for name in own.surface.metrics:
        torch.testing.assert_close(found.sheets[0].surface.values[name], own.surface.values[name], rtol=0, atol=0)
    with pytest.raises(ValueError, match="`model` is needed"):
        surface(weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axes": ("random",) * 4}, "`axes` must be one to 3 names, got 4"),
        ({"axes": ("sam", "sam")}, "'sam' twice"),
        ({"points": 1}, "`points.0` got 1"),
        ({"radius": -1.0}, "`radius.0` got -1.0"),
        ({"metrics": ("accuracy",)}, "'accuracy'"),
        ({"mode": "train"}, "`mode` got 'train'"),
        ({"step": 7}, r"`step` must be one of .* checkpoints \["),
        ({"between": "line"}, "name two, got 1"),
        ({"between": "plane"}, "name three, got 1"),
        ({"axes": ("own", "random")}, "'own', but .* was not trained with a perturbation"),
        ({"batch": 1000, "axes": "gradient"}, "`batch` must be at most the 40 examples"),
        ({"colour": "red"}, "unknown key `colour`"),
    ],
)
def test_foolish_input(copies, options, message):
    with pytest.raises(ValueError, match=message):
        surface(copies["sgd"].folder, **{**PLANE, **options})


def test_foolish_places(copies, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: give a run's folder"):
        surface(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds several runs"):
        surface(copies["sgd"].folder.parent.parent)
    with pytest.raises(ValueError, match="at least one run"):
        surface()


def test_a_checkpoint_whose_weights_changed_is_drawn_anew(copies):
    run = copies["sgd"]
    before = plane(run)
    step = max(run.checkpoints())
    model, meta = load_checkpoint(run.checkpoint(step))
    with torch.no_grad():
        for p in model.parameters():
            p *= 0.5
    save_checkpoint(run.checkpoint(step), model, {k: v for k, v in meta.items() if k not in ("schema", "names")})
    after = plane(run)
    assert after.file != before.file
    assert after.surface.centre["train loss"] != before.surface.centre["train loss"]


def test_leavings_of_another_plan_are_removed(copies):
    file = file_of(checkpoint_of(copies["sgd"].folder), recipe(**PLANE))
    parts = file.with_suffix(".parts")
    parts.mkdir(parents=True)
    (parts / "plan.json").write_text(json.dumps({"file": "other"}))
    (parts / "0.journal").write_bytes(b"junk")
    found = plane(copies["sgd"])
    assert bool(found.surface.computed.all())
    assert not parts.exists()


def test_a_surface_that_another_process_finished_while_we_waited_for_the_lock_is_read(copies, monkeypatch):
    whole = plane(copies["sgd"])
    content = bytes_of(whole)
    whole.file.unlink()
    real = sheets.locked

    def late(*arguments, **more):
        whole.file.write_bytes(content)  # another process was faster
        return real(*arguments, **more)

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(sheets, "locked", late)
    monkeypatch.setattr(computing, "evaluate", never)
    assert bytes_of(plane(copies["sgd"])) == content


@pytest.mark.parametrize("between", ["line", None])
def test_what_another_process_computes_is_refused_or_waited_for(copies, between):
    places = [checkpoint_of(copies[name].folder) for name in (("sgd", "sam") if between else ("sgd",))]
    chosen = recipe(**{**PLANE, "between": between} if between else PLANE)
    path = file_of(places[0], chosen, *places[1:])
    with locked(path.parent, f"{path.stem}.lock"), pytest.raises(BusyError, match=f"{path.stem} is in use by process"):
        survey(places, chosen, runtime=Runtime(jobs=1))
    timer = threading.Timer(0.5, held(path).release)
    timer.start()
    assert survey(places, chosen, runtime=Runtime(jobs=1), wait=60.0).sheets
    timer.join()


def held(path):
    """The lock of a surface, taken until it is released."""
    return Lock(path.parent / f"{path.stem}.lock", _take(path.parent / f"{path.stem}.lock"))


def test_what_a_process_left_that_was_killed_after_its_last_write_is_removed(copies):
    sheet = plane(copies["sgd"])
    parts = sheet.file.with_suffix(".parts")
    parts.mkdir()
    (parts / "plan.json").write_text("{}")
    assert bytes_of(plane(copies["sgd"])) == bytes_of(sheet)
    assert [p.name for p in sheet.file.parent.iterdir()] == [sheet.file.name]


def test_processes_share_what_is_left_and_get_all_of_it(monkeypatch):
    scanner = type(
        "Scanner", (), {"columns": ["a"], "blocks": staticmethod(lambda n: [range(i, i + 1) for i in range(n)])}
    )
    asked = []

    class Three(Ranks):
        """The second of three processes, of which the others answer at once."""

        def each(self, function):
            share = [answer(asked[0][r :: self.count]) for r in range(self.count)]
            assert {n: v.tolist() for n, v in function().items()} == {n: v.tolist() for n, v in share[1].items()}
            return share

    def answer(numbers):
        return {number: np.full((1, 2, 1), float(number)) for number in numbers}

    for done in ((), (0, 1, 4)):
        work = computing.Computation.__new__(computing.Computation)
        work.ranks, work._asked, work._done, work.scanner = Three(1, 3), 0, answer(done), scanner
        work._compute = lambda blocks: answer(number for number, _ in blocks)
        asked[:] = [[i for i in range(7) if i not in done]]
        values, _ = work.evaluate([(float(i),) for i in range(7)])["a"]
        assert values.tolist() == [float(i) for i in range(7)]


def test_what_is_printed_is_short_and_names_no_folder(copies):
    found = surface(copies["sgd"].folder, **PLANE)
    assert repr(found) == "Survey('sgd: along 2 random directions', 1 surface)"
    assert repr(found.sheets[0]).startswith(
        "Sheet('sgd', Surface(5 x 5 points over random direction 1, random direction 2;"
    )


def test_time_is_told_in_advance(copies):
    text = time_needed([checkpoint_of(copies["sgd"].folder)], recipe(**PLANE), Runtime(jobs=2))
    assert text.startswith("25 points of")
    assert "on 2 cores" in text
    between = recipe(**{**PLANE, "between": "line", "points": 41})
    assert time_needed([checkpoint_of(copies["sgd"].folder)], between).startswith("41 points of")
    with pytest.raises(ValueError, match="at least one run"):
        time_needed([], between)


def test_numbers_beside_the_picture_are_those_of_the_dense_hessian(copies):
    sheet = plane(copies["sam"], axes="random", points=3, numbers=True, precision="float64", splits="train")
    from analysis.surfaces.places import surface_risks
    from landscape import Hessian, dense

    subject = checkpoint_of(copies["sam"].folder).load(0)
    chosen = recipe(**sheet.surface.context["recipe"])
    risk = next(iter(surface_risks(subject, chosen).values()))
    values = torch.linalg.eigvalsh(dense(Hessian(risk)))
    told = sheet.surface.context
    assert told["top_eigenvalue"] == pytest.approx(float(values[-1]), rel=1e-3)
    assert told["bottom_eigenvalue"] == pytest.approx(float(values[0]), rel=1e-2)
    assert told["trace"] == pytest.approx(float(values.sum()), abs=5 * told["trace_stderr"])
    assert told["parameters"] == len(values)
    second = told["second_order"]
    assert second["value"] == pytest.approx(sheet.surface.centre["train loss"][0], rel=1e-12)


def test_a_sheet_reads_back(copies):
    sheet = plane(copies["sam"], axes=("pca", "pca"))
    again = Sheet.read(sheet.file)
    assert again.name == "sam"
    assert len(again.paths) == 1
    assert survey([checkpoint_of(copies["sam"].folder)], recipe(**PLANE)).folder.parent.name == "surfaces"


MINE = """
import torch

def margin(outputs, targets):
    own = outputs.gather(1, targets[:, None]).squeeze(1)
    return own - outputs.scatter(1, targets[:, None], -torch.inf).max(1).values
"""


def test_a_metric_of_the_users_own(copies, tmp_path, monkeypatch):
    (tmp_path / "mymetrics.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = plane(copies["sam"], axes="random", points=3, metrics=("loss", "mymetrics:margin")).surface
    assert found.metrics == ["train loss", "train margin", "test loss", "test margin"]
    own = plane(copies["sam"], axes="random", points=3, metrics=("error", "mymetrics:margin")).surface
    negative = own.values["test margin"].isfinite()
    assert bool(negative.all())
    with pytest.raises(ValueError, match="there is no module 'nobody'"):
        plane(copies["sam"], metrics=("nobody:margin",))


def test_a_file_is_drawn_again_without_the_model(copies, tmp_path):
    found = surface(copies["sgd"].folder, copies["sam"].folder, **PLANE, metrics=("error",))
    files = []
    for sheet in found.sheets:
        files.append(tmp_path / f"{sheet.name}.npz")
        files[-1].write_bytes(bytes_of(sheet))
    again = read_survey(*files, out=tmp_path / "again")
    assert again.notes() == found.notes()
    written = again.write(vtk=True)
    names = {path.name for path in written}
    assert {"surface.html", "reading.md", "contour-train-error.png", "contour-test-error.pdf", "sgd.vts"} <= names
    assert all(path.stat().st_size > 500 for path in written)
    before = {path.name: path.read_bytes() for path in written if path.suffix in (".png", ".pdf", ".html", ".vts")}
    other = replace(found, folder=tmp_path / "other")
    after = {path.name: path.read_bytes() for path in other.write(vtk=True) if path.name in before}
    assert before == after
    with pytest.raises(ValueError, match="other recipes"):
        read_survey(files[0], plane(copies["sgd"], points=3, metrics=("error",)).file)
    with pytest.raises(ValueError, match="at least one surface"):
        read_survey()


@pytest.mark.parametrize(
    "options",
    [
        {"axes": "random"},
        {"axes": ("pca", "pca"), "metrics": ("loss",)},
        {"axes": ("random",) * 3, "points": 3, "metrics": ("loss",)},
        {"between": "bezier", "align": True, "metrics": ("loss",)},
        {"between": "plane", "metrics": ("error",)},
    ],
    ids=str,
)
def test_every_kind_has_figures_and_a_note(copies, tmp_path, options):
    count = {"bezier": 2, "plane": 3}.get(options.get("between"), 1)
    models = [copies[name].folder for name in ("sgd", "sam", "obf")[:count]]
    found = surface(*models, out=tmp_path, **{**PLANE, **options})
    written = found.write()
    assert len([p for p in written if p.suffix == ".png"]) >= 2
    assert "How to read" in found.notes()
    assert found._repr_html_().count("<img") == 1
    assert found.title in (tmp_path / "surface.html").read_text().replace("&#39;", "'")


def test_the_command_line(copies, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["surface", str(copies["sam"].folder), "--points", "5", "--examples", "40", "--no-numbers"])
    assert stop.value.code == 0
    out = capsys.readouterr()
    assert "How to read sam" in out.out
    assert "25 points of" in out.err
    page = next(line.removeprefix("page: ") for line in out.out.splitlines() if line.startswith("page: "))
    assert "plotly" in Path(page).read_text()
    with pytest.raises(SystemExit) as stop:
        main(["surface", str(copies["sam"].folder), str(copies["wide"].folder)])
    assert stop.value.code == 2
    assert "differ in architecture" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["surface", str(copies["sam"].folder), "--cost", "--no-numbers"])
    assert stop.value.code == 0
    assert "2601 points of" in capsys.readouterr().out


def test_a_model_in_memory(tmp_path):
    """L(w) = mean (x w - y)² with x = ±1, y = x is (w - 1)², at every point of a line along its only direction."""
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(model.weight, 3.0)
    found = surface(model, torch.nn.functional.mse_loss, (x, x), axes="gradient", points=5, radius=1.0, out=tmp_path)
    (one,) = found.surfaces.values()
    at = 3.0 + one.grid.coordinates[0]  # the gradient points up
    torch.testing.assert_close(one.values["train loss"], (at - 1) ** 2, rtol=1e-12, atol=1e-12)
    assert one.context["second_order"]["curvature"] == [[pytest.approx(2.0)]]
    assert found._repr_html_().count("<img") == 1
    assert found.folder == tmp_path
    assert float(model.weight.detach()) == 3.0
    data = (torch.randn(20, 1, dtype=torch.float64), torch.zeros(20, dtype=torch.long))
    classes = surface(torch.nn.Linear(1, 3).double(), torch.nn.functional.cross_entropy, data, points=3, numbers=False)
    assert classes.surfaces["Linear"].metrics == ["train loss", "train error"]


@pytest.mark.parametrize(
    ("given", "options", "match"),
    [
        ((), {}, r"has 1 parts: give analysis.surface\(model, loss, data\)"),
        ((torch.nn.functional.mse_loss, ()), {"split": "train"}, "`split` is no option of a surface around a model in"),
        ((torch.nn.functional.mse_loss, ()), {"normalize": "none"}, "Did you mean 'normalise'"),
        ((torch.nn.functional.mse_loss, (torch.ones(2, 1),) * 2), {"axes": "pca"}, "`axes` has 'pca', which needs the"),
    ],
)
def test_what_a_model_in_memory_does_not_have(given, options, match):
    with pytest.raises(ValueError, match=match):
        surface(torch.nn.Linear(1, 1), *given, **options)
