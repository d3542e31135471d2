"""The cost of a step: forward and backward passes counted on the model, against methods.md section 5."""

import math

import pytest
import torch
from networks import PASSES, PERTURBED, data, make, network, train

from trainers import METHODS


def counted(method, *, m=None, count=2, norm=torch.nn.BatchNorm1d, **options):
    """Forwards (in examples), backwards, and closure calls of the last of some steps."""
    model = network(norm=norm)
    optimizer = make(method, model, **options)
    forwards, backwards = [], []
    model.register_forward_hook(lambda _, args, out: forwards.append((len(args[0]), out.requires_grad)))
    model[4].register_full_backward_hook(lambda *_: backwards.append(1))
    batches = data(count)
    for batch in batches:
        forwards.clear()
        backwards.clear()
        train(model, optimizer, [batch], m=m)
    return forwards, len(backwards), optimizer


# method: full batches forward, of them without a graph, backward; the reference passes of nsam, noisesam, ssam_f apart
COSTS = {
    "sgd": (1, 0, 1), "adamw": (1, 0, 1), "msam": (1, 0, 1), "s2sam": (1, 0, 1), "randsam": (2, 1, 1),
    "crsam": (3, 0, 3), "tracesam": (3, 0, 3), "detsam": (3, 0, 3), "frobsam": (3, 0, 3), "lookbehind": (3, 0, 3),
    "deltasam": (3, 1, 2), "aesam": (2, 0, 2), "aosam": (2, 0, 2), "esam": (2.5, 1, 2),
}  # fmt: skip


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("nsam", "noisesam", "ssam_f")])
def test_a_step_costs_what_its_equations_say(method):
    forwards, backwards, optimizer = counted(method, **PERTURBED.get(method, {}))
    wanted, without_graph, back = COSTS.get(method, (2, 0, 2))
    if method == "esam":  # all twice (once without a graph), then half the examples
        wanted = 2 + 0.5
    assert sum(n for n, _ in forwards) / 12 == pytest.approx(wanted)
    assert sum(not graph for _, graph in forwards) == without_graph
    assert backwards == back
    assert optimizer.last.passes == len(forwards) == PASSES.get(method, 2)


@pytest.mark.parametrize(
    "method", ["sam", "gsam", "fsam", "wsam", "randsam", "crsam", "tracesam", "bsam", "lookbehind"]
)
def test_chunks_cost_as_many_examples_as_one_batch(method):
    whole, _, _ = counted(method)
    chunks, _, optimizer = counted(method, m=4)
    assert sum(n for n, _ in whole) == sum(n for n, _ in chunks)
    assert optimizer.last.passes == 3 * PASSES.get(method, 2)


@pytest.mark.parametrize(
    ("method", "options", "passes"),
    [
        ("sam", {"steps": 3}, 4),
        ("sam", {"steps": 2, "path": "split"}, 3),
        ("lookbehind", {"k": 4}, 5),
        ("tracesam", {"draws": 3}, 7),
        ("tracesam", {"draws": 3, "antithetic": False}, 4),
        ("frobsam", {"draws": 4}, 5),
        ("deltasam", {"draws": 3}, 5),
        ("deltasam", {"estimator": "exact"}, 2),
        ("esam", {"gamma": 1.0}, 2),
        ("randsam", {}, 2),
    ],
)
def test_knobs_cost_what_they_say(method, options, passes):
    assert len(counted(method, **options)[0]) == passes


def test_randsam_without_running_statistics_still_sees_the_clean_loss_without_a_backward():
    forwards, backwards, optimizer = counted("randsam", norm=None)
    assert [graph for _, graph in forwards] == [False, True]
    assert backwards == 1
    assert not math.isnan(optimizer.last.clean_loss)


@pytest.mark.parametrize(("method", "reference"), [("nsam", 3), ("noisesam", 3), ("ssam_f", 5)])
def test_reference_data_cost_a_pass_each_when_they_are_due(method, reference):
    # nsam: every step a clean forward, the descent, and 3 reference closures; noisesam: two passes, G every 100 steps
    options = {"update_epochs": 1.0} if method == "ssam_f" else {}
    due = counted(method, count=1, **options)
    later = counted(method, count=2, **options)
    assert len(due[0]) == 2 + reference
    assert len(later[0]) == (2 + reference if method == "nsam" else 2)


def test_steps_of_a_gated_method_cost_one_pass_between():
    for method, options, expected in (
        ("looksam", {"k": 3}, [2, 1, 1, 2]),
        ("sam", {"gate": "periodic", "gate_options": {"k": 2}}, [2, 1, 2, 1]),
    ):
        model = network()
        optimizer = make(method, model, **options)
        costs = []
        for batch in data(4):
            train(model, optimizer, [batch])
            costs.append(optimizer.last.passes)
        assert costs == expected


def test_sampa_costs_one_pass_more_at_its_first_step_alone():
    model = network()
    optimizer = make("sampa", model)
    costs = []
    for batch in data(3):
        train(model, optimizer, [batch])
        costs.append(optimizer.last.passes)
    assert costs == [3, 2, 2]


@pytest.mark.parametrize("method", ["wsam", "gnp", "crsam", "stablesam", "sam_step_size"])
def test_another_ascent_objective_costs_a_backward_and_no_forward(method):
    # these need the loss's own gradient as well: a second backward through the same graph
    plain = counted(method)
    obf = counted(method, ascent="obf")
    assert len(obf[0]) == len(plain[0])
    assert obf[1] == plain[1] + 1


@pytest.mark.parametrize("method", ["gsam", "looksam", "sam", "fsam", "esam"])
def test_the_clean_loss_of_another_ascent_objective_is_free(method):
    forwards, backwards, optimizer = counted(method, ascent="obf", **PERTURBED.get(method, {}))
    plain = counted(method, **PERTURBED.get(method, {}))
    assert len(forwards) == len(plain[0]) + (method == "esam")  # ESAM compares training losses: one forward more
    assert backwards == plain[1]
    assert not math.isnan(optimizer.last.clean_loss)


def test_esam_spares_the_gradients_of_tensors_that_it_does_not_move():
    model = network()
    optimizer = make("esam", model, beta=0.4, gamma=1.0, seed=2)
    got = []
    for name, p in model.named_parameters():
        p.register_hook(lambda _, n=name: got.append(n))
    train(model, optimizer, data(1))  # the first step finds out which parameters the loss uses
    got.clear()
    train(model, optimizer, data(1))
    first = got[: -len(list(model.parameters()))]
    assert 0 < len(first) < 6
    assert set(first) == optimizer.parts.mask.drawn


def test_sam_on_spares_them_too():
    model = network()
    got = []
    for name, p in model.named_parameters():
        p.register_hook(lambda _, n=name: got.append(n))
    optimizer = make("sam_on", model)
    train(model, optimizer, data(1))
    got.clear()
    train(model, optimizer, data(1))
    assert sorted(got[:-6]) == ["1.bias", "1.weight"]
    assert len(set(got[-6:])) == 6
