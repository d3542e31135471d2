"""The scan against closed forms, its independence of order and grouping, and what it leaves alone."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from problems import F64, ConvNorm, case, small
from torch import nn
from torch.testing import assert_close

from analysis.progress import shown
from landscape import EmpiricalRisk
from landscape.surfaces.axes import Axes, Axis
from landscape.surfaces.grid import Grid
from landscape.surfaces.scan import ScanInterrupted, Scanner, scan, scan_blocks


def direction(theta, seed, scale=0.3):
    g = torch.Generator().manual_seed(seed)
    return {k: scale * torch.randn(t.shape, generator=g, dtype=F64).to(t.dtype) for k, t in theta.items()}


def axes_of(risk, k=2, **options):
    return Axes(risk.theta, tuple(Axis(direction(risk.theta, i + 1, **options), f"axis {i}") for i in range(k)))


class Quadratic(nn.Module):
    """Linear in its 12 weights: under a squared loss the risk is a quadratic in them."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 2, dtype=F64), nn.Linear(2, 2, bias=False, dtype=F64)

    def forward(self, x):
        return self.one(x) + self.two(x[:, :2] ** 2)


def squared(out, y):
    return (out - y).square().sum(-1).mean()


def quadratic(sizes=(7,)):
    g = torch.Generator().manual_seed(0)
    n = sum(sizes)
    x, y = torch.randn(n, 3, generator=g, dtype=F64), torch.randn(n, 2, generator=g, dtype=F64)
    model = Quadratic()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=F64))
    return EmpiricalRisk.from_model(model, squared, list(zip(x.split(sizes), y.split(sizes), strict=True))), x, y


def exact(risk, x, y, axes, grid):
    """|X w(a) - y|² / n by a design matrix: nothing of the package, and no forward pass."""
    wide = torch.cat([x, torch.ones(len(x), 1, dtype=F64), x[:, :2] ** 2], 1)

    def rows(p):
        return torch.cat([p["one.weight"], p["one.bias"][:, None], p["two.weight"]], 1)

    w = rows(axes.origin)
    for a, axis in zip(grid.mesh(), axes.axes, strict=True):
        w = w + a[..., None, None] * rows(axis.direction)
    return (torch.einsum("nf,...cf->...nc", wide, w) - y).square().sum(-1)


@pytest.mark.parametrize("points", [5, 6], ids=["odd", "even"])
@pytest.mark.parametrize("k", [1, 2, 3], ids=["line", "plane", "volume"])
@pytest.mark.parametrize("sizes", [(7,), (4, 2, 1)], ids=["one batch", "ragged"])
@pytest.mark.parametrize("batch_points", [1, 4])
def test_on_a_quadratic_every_value_is_the_analytic_one(points, k, sizes, batch_points):
    risk, x, y = quadratic(sizes)
    axes, grid = axes_of(risk, k), Grid.around([0.5, 1, 2][:k], points, axes=k)
    surface = scan(risk, axes, grid, batch_points=batch_points)
    each = exact(risk, x, y, axes, grid)
    assert surface.context["batch_points"] == batch_points
    assert_close(surface.values["loss"], each.mean(-1), rtol=1e-10, atol=1e-10)
    assert_close(surface.stderr["loss"], each.std(-1) / math.sqrt(7), rtol=1e-10, atol=1e-10)
    assert surface.centre["loss"][0] == pytest.approx(risk.value(), rel=1e-12)
    assert surface.whole
    if points % 2:
        assert surface.values["loss"][(points // 2,) * k].item() == surface.centre["loss"][0]


def test_batches_are_weighted_by_size_where_a_mean_of_means_is_off():
    risk, x, y = quadratic((6, 1))
    axes, grid = axes_of(risk, 1), Grid.around(1.0, 3, axes=1)
    each = exact(risk, x, y, axes, grid)
    of_means = (each[:, :6].mean(-1) + each[:, 6]) / 2
    found = scan(risk, axes, grid).values["loss"]
    assert_close(found, each.mean(-1), rtol=1e-10, atol=1e-10)
    assert ((found - of_means).abs() > 0.01).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_surface_is_not_transposed(axis):
    risk, _, _ = quadratic()
    axes, grid = axes_of(risk), Grid.around([1.0, 0.25], [3, 4], axes=2)
    found = scan(risk, axes, grid).values["loss"]
    assert found.shape == (3, 4)
    at = [0.0, 0.0]
    at[axis] = float(grid.coordinates[axis][-1])
    alone = risk.value(axes.at([float(grid.coordinates[0][2]), float(grid.coordinates[1][1])]))
    assert float(found[2, 1]) == pytest.approx(alone, rel=1e-12)


NAMES = [
    "conv:eval", "conv:batch", "conv:recalibrate", "sdpa:plain", "sdpa:additive", "padded", "encoder",
    "recurrent:lstm", "recurrent:gru", "tied", "language", "returns:tuple", "returns:named", "returns:dict",
    "returns:data",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:RNN module weights:UserWarning")
@pytest.mark.parametrize("batch_points", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_model_is_the_risk_at_the_point(name, batch_points):
    risk = case(name).risk()
    axes = axes_of(risk)
    points = [(0.0, 0.0), (0.4, -0.2), (-1.0, 0.3), (0.1, 0.1)]
    found, _ = Scanner(risk, axes, metrics=["loss"], batch_points=batch_points).evaluate(points)["loss"]
    expected = torch.tensor([risk.value(axes.at(p)) for p in points], dtype=F64)
    assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["sdpa:plain", "tied", "encoder", "conv:eval", "conv:batch", "padded"])
def test_points_at_once_are_possible_for(name):
    risk = case(name).risk()
    scanner = Scanner(risk, axes_of(risk), metrics=["loss"], batch_points=3)
    assert (scanner.batch_points, scanner.notes) == (3, [])


@pytest.mark.parametrize("batch_points", [1, 4])
def test_order_and_grouping_of_points_do_not_matter_to_the_bit(batch_points):
    risk = small(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), (9, 3), sizes=(5, 4), dtype=torch.float32)
    axes = axes_of(risk)
    points = list(Grid.around(1.0, 4, axes=2).points())
    whole = Scanner(risk, axes, batch_points=batch_points).evaluate(points)
    scanner = Scanner(risk, axes, batch_points=batch_points)
    for block in reversed(scanner.blocks(len(points))):
        some = scanner.evaluate(points[i] for i in block)
        for name, (values, stderrs) in whole.items():
            assert torch.equal(some[name][0], values[block.start : block.stop])
            assert torch.equal(some[name][1], stderrs[block.start : block.stop])


def test_weights_at_a_point_are_those_of_the_axes_to_the_bit_after_any_other_point():
    risk = small(nn.Linear(3, 2), dtype=torch.float32)
    axes = axes_of(risk)
    seen = []

    def predict(theta, x):
        seen.append({k: t.clone() for k, t in theta.items()})
        return risk.predict(theta, x)

    scanner = Scanner(EmpiricalRisk(predict, risk.loss, risk.batches, risk.theta), axes, batch_points=1)
    for point in [(0.3, 1.7), (1e30, -1e30), (0.1, -0.7), (0.0, 0.0)]:
        seen.clear()
        scanner.evaluate([point])
        assert all(torch.equal(seen[0][k], t) for k, t in axes.at(point).items())


@pytest.mark.parametrize("mode", ["eval", "batch", "recalibrate"])
@pytest.mark.parametrize("batch_points", [1, 3])
def test_model_and_axes_are_as_they_were(mode, batch_points):
    model = ConvNorm().double().train()
    model.add_module("drop", nn.Dropout(0.5))
    model.conv.bias.requires_grad_(False)
    model(torch.randn(4, 2, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))).sum().backward()
    x = torch.randn(7, 2, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    risk = EmpiricalRisk.from_model(model, F.cross_entropy, (x, torch.tensor([0, 1, 2, 0, 1, 2, 0])), mode=mode)
    axes = axes_of(risk)
    tensors = [*model.state_dict(keep_vars=True).values(), *(p.grad for p in model.parameters() if p.grad is not None)]
    tensors += [t for axis in axes.axes for t in axis.direction.values()] + [x]
    inner = [*risk.predict.module.state_dict().values()]
    before = [(t, t.detach().clone(), t._version, t.requires_grad) for t in tensors + inner]
    state = torch.get_rng_state()
    scan({"a": risk, "b": risk.on((x[:3], torch.tensor([0, 1, 2])))}, axes, Grid.around(1.0, 3, axes=2),
         batch_points=batch_points)  # fmt: skip
    assert all(torch.equal(t, copied) and t._version == v and t.requires_grad is r for t, copied, v, r in before)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


def test_named_sets_are_evaluated_in_one_go_and_named():
    risk = small(nn.Linear(3, 2), sizes=(4, 2))
    other = risk.on([(x[:1], y[:1]) for x, y in risk.batches])
    axes, grid = axes_of(risk), Grid.around(1.0, 3, axes=2)
    both = scan({"train": risk, "test": other}, axes, grid)
    assert both.metrics == ["train loss", "train error", "test loss", "test error"]
    assert torch.equal(both.values["train loss"], scan(risk, axes, grid, batch_points=both.context["batch_points"])
                       .values["loss"])  # fmt: skip
    assert float(both.values["test loss"][0, 2]) == pytest.approx(other.value(axes.at((-1.0, 1.0))), rel=1e-12)
    assert both.context["examples"] == {"train": 6, "test": 2}


def test_running_statistics_along_a_line_between_two_models():
    g = torch.Generator().manual_seed(2)
    one, two = (case("conv:eval").model for _ in range(2))
    for t in two.state_dict().values():
        if t.is_floating_point():
            t += 0.1 * torch.rand(t.shape, generator=g, dtype=F64)
    batches = case("conv:eval").batches
    risk = EmpiricalRisk.from_model(one, F.cross_entropy, batches)
    theta = {k: p.detach() for k, p in two.named_parameters()}
    statistics = {k: dict(two.named_buffers())[k] - t for k, t in one.named_buffers() if t.is_floating_point()}
    line = {k: theta[k] - t for k, t in risk.theta.items()}
    axes = Axes(risk.theta, (Axis(line, "a to b", buffers=statistics),))
    scanner = Scanner(risk, axes, batch_points=4)
    found = scanner.evaluate([(1.0,), (0.0,), (0.5,)])["loss"][0]
    assert "running statistics" in scanner.notes[0]
    ends = [EmpiricalRisk.from_model(m, F.cross_entropy, batches).value() for m in (two, one)]
    assert_close(found[:2], torch.tensor(ends, dtype=F64), rtol=1e-10, atol=1e-12)
    assert risk.value() == ends[1]  # the risk's own statistics have not moved
    middle = copy.deepcopy(one)
    for t, u in zip(middle.state_dict().values(), two.state_dict().values(), strict=True):
        t.copy_((t + u) / 2) if t.is_floating_point() else None
    expected = EmpiricalRisk.from_model(middle, F.cross_entropy, batches).value()
    assert float(found[2]) == pytest.approx(expected, rel=1e-10)
    without = Axes(risk.theta, (Axis(line, "a to b"),))
    assert abs(float(Scanner(risk, without).evaluate([(1.0,)])["loss"][0]) - ends[0]) > 1e-3


def test_recalibration_uses_the_given_examples_for_all_sets():
    made = case("conv:recalibrate")
    risk = made.risk()
    (x, y), (x2, y2) = risk.batches
    axes = axes_of(risk)
    on_both = Scanner({"a": risk, "b": risk.on((x2, y2))}, axes).evaluate([(0.3, 0.2)])
    theta = axes.at((0.3, 0.2))
    assert float(on_both["a loss"][0]) == pytest.approx(risk.value(theta), rel=1e-10)
    settled = risk.settled(theta)
    assert float(on_both["b loss"][0]) == pytest.approx(settled.on((x2, y2)).value(theta), rel=1e-10)
    own = Scanner(risk, axes, calibration=(x, y)).evaluate([(0.3, 0.2)])["loss"][0]
    assert float(own) == pytest.approx(risk.on((x, y)).settled(theta).on(risk.batches).value(theta), rel=1e-10)
    assert abs(float(own) - float(on_both["a loss"][0])) > 1e-4


# What is not finite, or fails ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_points", [1, 4])
def test_infinite_and_undefined_values_are_kept_beside_finite_ones(batch_points):
    def predict(theta, x):
        return (theta["w"].log() + x).sum(-1, keepdim=True)

    theta = {"w": torch.tensor([1.0], dtype=F64)}
    x = torch.zeros(3, 1, dtype=F64)
    risk = EmpiricalRisk(predict, lambda out, y: (out[:, 0] + y).mean(), [(x, x[:, 0])], theta)
    axes = Axes(theta, (Axis({"w": torch.ones(1, dtype=F64)}, "w"),))
    values, stderrs = Scanner(risk, axes, batch_points=batch_points).evaluate([[1.0], [-1.0], [-2.0], [0.0]])["loss"]
    assert_close(values, torch.tensor([math.log(2), -math.inf, math.nan, 0.0], dtype=F64), equal_nan=True)
    assert_close(stderrs, torch.tensor([0.0, math.nan, math.nan, 0.0], dtype=F64), equal_nan=True)


class Inverse(nn.Module):
    """Solves a system, which fails where it is singular."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(2, dtype=F64))

    def forward(self, x):
        return torch.linalg.solve(self.matrix, x.T).T


@pytest.mark.parametrize("batch_points", [1, 2])
def test_a_forward_pass_that_fails_is_a_point_without_values(batch_points):
    x, y = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 1])
    risk = EmpiricalRisk.from_model(Inverse(), F.cross_entropy, (x, y))
    axes = Axes(risk.theta, (Axis({"matrix": torch.eye(2, dtype=F64)}, "scale"),))
    scanner = Scanner(risk, axes, batch_points=batch_points)
    values, _ = scanner.evaluate([[-0.5], [-1.0], [0.5]])["loss"]
    assert values.isnan().tolist() == [False, True, False]
    assert float(values[2]) == pytest.approx(risk.value(axes.at([0.5])), rel=1e-12)
    ((message, count),) = scanner.failures.items()
    assert "LinAlgError" in message
    assert count == 1


def test_lack_of_memory_is_no_point_without_values():
    risk = small(nn.Linear(3, 2))
    calls = []

    def predict(theta, x):
        calls.append(1)
        if len(calls) > 12:
            raise torch.OutOfMemoryError("none left")
        return risk.predict(theta, x)

    scanner = Scanner(EmpiricalRisk(predict, risk.loss, risk.batches, risk.theta), axes_of(risk), batch_points=1)
    with pytest.raises(torch.OutOfMemoryError):
        scanner.evaluate([(0.1 * i, 0.0) for i in range(9)])


def test_an_error_of_the_model_itself_is_raised():
    risk = small(nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Scanner(risk.on((torch.randn(4, 5, dtype=F64), torch.zeros(4, dtype=torch.long))), axes_of(risk))


# Interruption -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_points", [1, 4])
def test_an_interrupted_scan_goes_on_to_the_same_bits(batch_points):
    risk = small(nn.Linear(3, 2), dtype=torch.float32)
    axes, grid = axes_of(risk), Grid.around(1.0, 5, axes=2)
    whole = scan(risk, axes, grid, batch_points=batch_points)

    def stop(done, total):
        assert total == 25
        if done >= 9:
            raise KeyboardInterrupt

    with pytest.raises(ScanInterrupted, match=r"(9|12) of 25 points") as caught:
        scan(risk, axes, grid, batch_points=batch_points, progress=stop)
    part = caught.value.surface
    assert not part.whole
    assert part.values["loss"][~part.computed].isnan().all()
    told = []
    rest = scan(risk, axes, grid, start=part, progress=lambda *now: told.append(now[0]))
    assert told[0] == int(part.computed.sum())
    assert told[-1] == 25
    for name in whole.values:
        assert torch.equal(rest.values[name], whole.values[name])
        assert torch.equal(rest.stderr[name], whole.stderr[name])
    assert rest.context == whole.context
    assert rest.centre == whole.centre


def test_another_scan_cannot_be_continued():
    risk = small(nn.Linear(3, 2))
    axes, grid = axes_of(risk), Grid.around(1.0, 3, axes=2)
    done = scan(risk, axes, grid, batch_points=1)
    with pytest.raises(ValueError, match="`start` has another grid"):
        scan(risk, axes, Grid.around(2.0, 3, axes=2), start=done)
    with pytest.raises(ValueError, match="ask for the same metrics"):
        scan(risk, axes, grid, metrics=["loss"], start=done)
    with pytest.raises(ValueError, match="batch_points 1, this scan 4"):
        scan(risk, axes, grid, batch_points=4, start=done)
    with pytest.raises(ValueError, match="`start` has other axes"):
        scan(risk, axes_of(risk, scale=0.5), grid, start=done)


def test_blocks_can_be_shared_out():
    risk = small(nn.Linear(3, 2), dtype=torch.float32)
    axes, grid = axes_of(risk), Grid.around(1.0, 5, axes=2)
    whole = scan(risk, axes, grid, batch_points=4).values["loss"].reshape(-1)
    scanner = Scanner(risk, axes, batch_points=4)
    for rank in range(3):
        for block, found in scan_blocks(scanner, grid, scanner.blocks(25)[rank::3]):
            assert torch.equal(found["loss"][0], whole[block.start : block.stop])


def test_a_scan_can_be_shown_on_stderr(capsys):
    risk = small(nn.Linear(3, 2))
    scan(risk, axes_of(risk), Grid.around(1.0, 3, axes=2), progress=shown())
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "9/9 points\n"


# Cost and plan ------------------------------------------------------------------------------------------------------


def test_cost_is_told():
    risk = small(nn.Linear(3, 2))
    scanner = Scanner(risk, axes_of(risk), batch_points=1)
    assert 0 < scanner.seconds_per_point() < 1
    assert scanner.bytes >= 8 * 8


def test_parts_fit_the_cache_and_do_not_change_the_values(monkeypatch):
    risk = case("conv:eval").risk()
    axes = axes_of(risk)
    whole = Scanner(risk, axes)
    assert whole.context["parts"] == {"": [4, 3]}
    monkeypatch.setattr("landscape.surfaces.subsets.CACHE_BYTES", 2 * 3 * 16 * 8)  # two examples of the widest layer
    cut = Scanner(risk, axes)
    assert cut.context["parts"] == {"": [2, 2, 2, 1]}
    for name, (values, stderrs) in whole.evaluate([(0.2, -0.4)]).items():
        assert_close(cut.evaluate([(0.2, -0.4)])[name], (values, stderrs), rtol=1e-12, atol=1e-12)
    normalised = case("conv:batch").risk()
    assert Scanner(normalised, axes_of(normalised)).context["parts"] == {"": [4, 3]}


# Bad input ----------------------------------------------------------------------------------------------------------


class Noisy(nn.Linear):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, training=True)


def test_what_cannot_be_scanned_is_refused():
    risk = small(nn.Linear(3, 2))
    axes = axes_of(risk)
    with pytest.raises(ValueError, match="`risks` has mode 'train', which is random"):
        Scanner(small(nn.Linear(3, 2), mode="train"), axes)
    with pytest.raises(ValueError, match="modes 'eval' and 'batch'"):
        Scanner({"a": risk, "b": small(nn.Linear(3, 2), mode="batch")}, axes)
    with pytest.raises(ValueError, match="another model for 'b'"):
        Scanner({"a": risk, "b": small(nn.Linear(3, 2))}, axes)
    with pytest.raises(ValueError, match=r"shape \(2, 3\), the axes' origin has \(2, 4\): are they of the same arch"):
        Scanner(risk, axes_of(small(nn.Linear(4, 2), (6, 4))))
    with pytest.raises(ValueError, match="no such parameter"):
        Scanner(risk, axes_of(small(nn.Linear(3, 2, bias=False))))
    with pytest.raises(ValueError, match="outputs differ between two passes"):
        Scanner(small(Noisy(3, 2)), axes)
    with pytest.raises(ValueError, match="`risks` is empty"):
        Scanner({}, axes)
    with pytest.raises(ValueError, match="`batch_points` must be 'auto' or a whole number of at least 1, got 0"):
        Scanner(risk, axes, batch_points=0)
    with pytest.raises(ValueError, match="`calibration` needs risks of mode 'recalibrate'"):
        Scanner(risk, axes, calibration=risk)
    line = Axis(axes.axes[0].direction, "a", buffers={"x.running_mean": torch.ones(2)})
    with pytest.raises(ValueError, match=r"running statistic `x\.running_mean`, which the model has not"):
        Scanner(risk, Axes(risk.theta, (line,)))
    with pytest.raises(ValueError, match="`grid` has 1 rows of coordinates for 2 axes"):
        scan(risk, axes, Grid.around(1.0, 3, axes=1))
    with pytest.raises(ValueError, match=r"`points` must have 2 finite coordinates each, got \(1.0,\)"):
        Scanner(risk, axes).evaluate([[1.0]])
    with pytest.raises(ValueError, match="2 finite coordinates"):
        Scanner(risk, axes).evaluate([[1.0, math.nan]])
