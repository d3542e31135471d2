"""Running statistics, dropout and the random state under every method."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import (
    ELSEWHERE,
    NO_CLEAN_PASS,
    PERTURBED,
    SHARPNESS_AWARE,
    closures_of,
    data,
    flat,
    make,
    network,
    state,
    train,
)
from quadratics import F64, closure_of
from torch import nn

from trainers import METHODS, make_optimizer
from trainers.files.tree import equal
from trainers.randomness import seeded

CLEAN = [m for m in METHODS if m not in NO_CLEAN_PASS | ELSEWHERE]


def buffers(model):
    return {n: b.clone() for n, b in model.named_buffers()}


class Norms(nn.Module):
    """Every kind of layer with running statistics: nested, frozen, cumulative, without affine weights, in eval mode."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(nn.Conv1d(1, 4, 1), nn.Sequential(nn.BatchNorm1d(4, momentum=None)))
        self.instance = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
        self.free = nn.BatchNorm1d(4, affine=False)
        self.stateless = nn.BatchNorm1d(4, track_running_stats=False)
        self.frozen = nn.BatchNorm1d(4)
        self.frozen.requires_grad_(False)
        self.still = nn.BatchNorm1d(4).eval()
        self.group = nn.GroupNorm(2, 4)
        self.out = nn.Linear(24, 3)

    def train(self, mode=True):
        super().train(mode)
        if hasattr(self, "still"):
            self.still.eval()
        return self

    def forward(self, x):
        h = self.instance(self.inside(x[:, None, :]))
        for layer in (self.free, self.stateless, self.frozen, self.still, self.group):
            h = layer(torch.tanh(h))
        return self.out(h.flatten(1))


def with_norms():
    with seeded(3):
        return Norms().to(F64).train()


@pytest.mark.parametrize("build", [network, with_norms], ids=["plain", "every kind"])
@pytest.mark.parametrize("method", CLEAN)
def test_running_statistics_are_those_of_one_clean_forward_a_step(method, build):
    model = build()
    optimizer = make(method, model)
    reference = copy.deepcopy(model)
    modes = [m.training for m in model.modules()]
    for batch in data(3):
        reference.load_state_dict(model.state_dict())
        with torch.no_grad():
            reference(batch[0])
        train(model, optimizer, [batch])
        assert equal(buffers(model), buffers(reference))
    assert [m.training for m in model.modules()] == modes
    assert all(
        m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm1d) and m.running_mean is not None
    )


@pytest.mark.parametrize("method", sorted(NO_CLEAN_PASS | ELSEWHERE))
def test_methods_without_a_clean_pass_update_once_a_step_where_they_go_first(method):
    # MSAM, S2-SAM: at the displaced weights; R-SAM, bSAM: at the noisy ones; SAMPa: at the point ahead, at first at w
    model = network()
    optimizer = make(method, model)
    reference = copy.deepcopy(model)
    for step, batch in enumerate(data(3)):
        at, tracked = [], []

        def note(layer, _, at=at, tracked=tracked):
            at.append(state(model))
            tracked.append(layer.track_running_stats)

        handle = model[1].register_forward_pre_hook(note)
        train(model, optimizer, [batch])
        handle.remove()
        assert sum(tracked) == 1
        if method in NO_CLEAN_PASS:
            assert len(at) == 1
        reference.load_state_dict(at[tracked.index(True)])
        with torch.no_grad():
            reference(batch[0])
        assert equal(buffers(model), buffers(reference))
        assert int(model[1].num_batches_tracked) == step + 1


@pytest.mark.parametrize(
    "method", ["sam", "gsam", "crsam", "tracesam", "esam", "lookbehind", "deltasam", "wsam", "obf"]
)
def test_chunks_update_running_statistics_once_each(method):
    model = network()
    optimizer = make(method, model)
    train(model, optimizer, data(2), m=6)
    assert int(model[1].num_batches_tracked) == 4


@pytest.mark.parametrize("method", ["sam", "gsam", "crsam"])
def test_chunks_that_share_a_perturbation_update_once_each_too(method):
    model = network()
    train(model, make(method, model, sharing="batch"), data(2), m=6)
    assert int(model[1].num_batches_tracked) == 4


def test_plain_and_reused_steps_update_once_too():
    model = network()
    optimizer = make("looksam", model, k=3, window=(1, None))
    train(model, optimizer, data(4))
    assert int(model[1].num_batches_tracked) == 4


def test_the_previous_batch_lends_its_statistics_one_step_later():
    model = network()
    optimizer = make("nsam", model, ascent_data="previous")
    seen = []
    model[1].register_forward_pre_hook(
        lambda m, args: seen.append(args[0].detach().mean(0)) if m.track_running_stats else None
    )
    train(model, optimizer, data(4))
    assert (
        int(model[1].num_batches_tracked) == 3
    )  # the first batch at the first step, then one a step from the third on


def test_other_buffers_that_a_forward_pass_moves_move_once_a_step():
    # spectral normalisation keeps the vectors of its power iteration as buffers, and moves them in every pass
    with seeded(2):
        model = nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3))).to(F64)
    optimizer = make_optimizer("sam", model, lr=0.05, rho=0.3)
    (x, y), *_ = data(1)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        reference(x)
    optimizer.step(closure_of(model, lambda: F.cross_entropy(model(x), y)))
    assert equal(buffers(model), buffers(reference))


# -- dropout ---------------------------------------------------------------------------------------------------------

# passes on a subset of the examples, or over other data, draw other masks
OTHER_SHAPES = {"esam", "nsam", "noisesam", "ssam_f", "sampa"}


@pytest.mark.parametrize("method", [m for m in SHARPNESS_AWARE if m not in NO_CLEAN_PASS | OTHER_SHAPES])
@pytest.mark.parametrize("same", [True, False])
def test_all_passes_see_the_same_dropout_mask_unless_asked_otherwise(method, same):
    model = network(dropout=0.5, norm=None)
    optimizer = make(method, model, same_rng=same, **PERTURBED.get(method, {}))
    masks = []
    model[3].register_forward_hook(lambda _, __, out: masks.append(out == 0))
    with seeded(5):
        train(model, optimizer, data(1), m=6)
    passes = optimizer.last.passes // 2
    assert passes > 1
    assert len(masks) == 2 * passes
    gated = optimizer.parts.gate.needs_gradient  # then the first passes of all chunks come first
    chunks = (masks[0::2], masks[1::2]) if gated else (masks[:passes], masks[passes:])
    for chunk in chunks:
        equal_to_first = [torch.equal(mask, chunk[0]) for mask in chunk[1:]]
        assert all(equal_to_first) if same else not any(equal_to_first)
    assert not torch.equal(chunks[0][0], chunks[1][0])  # chunks draw their own


@pytest.mark.parametrize("method", [m for m in METHODS if m not in OTHER_SHAPES])
@pytest.mark.parametrize("m", [None, 6])
def test_the_random_state_after_a_step_is_that_of_one_pass(method, m):
    states = []
    for name in ("sgd", method):
        with seeded(3):
            model = network(dropout=0.5)
            train(model, make(name, model), data(3), m=m)
            states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_sampa_sees_the_previous_batch_with_the_masks_it_had():
    model = network(dropout=0.5, norm=None)
    optimizer = make("sampa", model)
    masks = []
    model[3].register_forward_hook(lambda _, __, out: masks.append(out == 0))
    with seeded(5):
        train(model, optimizer, data(3))
    first, lagged, ahead, lagged2, ahead2, lagged3, _ = masks
    assert torch.equal(first, lagged)
    assert torch.equal(first, ahead)
    assert torch.equal(first, lagged2)  # step 2 returns to batch 1
    assert torch.equal(ahead2, lagged3)  # step 3 to batch 2
    assert not torch.equal(first, ahead2)


def test_sampa_leaves_the_random_state_of_one_pass_a_step():
    states = []
    for name in ("sgd", "sampa"):
        with seeded(3):
            model = network(dropout=0.5)
            train(model, make(name, model), data(3))
            states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_the_methods_own_randomness_is_not_torchs():
    for method in ("randsam", "tracesam", "rsam", "bsam", "esam", "deltasam", "ssam_d", "sssam"):
        ends = []
        for seed in (1, 2):
            with seeded(seed):  # no dropout: torch's global state must not matter
                model = network()
                train(model, make(method, model, seed=4), data(2))
                ends.append(flat(model))
        assert torch.equal(*ends), method
        model = network()
        train(model, make(method, model, seed=5), data(2))
        assert not torch.equal(flat(model), ends[0]), method  # and the seed must


@pytest.mark.parametrize("method", ["tracesam", "randsam", "nsam"])
def test_plain_closures_do_what_rich_ones_do(method):
    ends = []
    for rich in (True, False):
        model = network(dropout=0.3)
        optimizer = make(method, model)
        with seeded(6):
            for x, y in data(2):
                descents, sizes, _ = closures_of(optimizer, model, x, y)
                plain = [closure_of(model, lambda a=x, b=y, net=model: F.cross_entropy(net(a), b))]
                optimizer.step(descents if rich else plain, sizes=sizes)
        ends.append(state(model))
    assert equal(*ends)
