"""Configurations: what names a run, what is refused, and with which words."""

import math

import pytest

from trainers.config import TrainConfig, train_config
from trainers.sharpness_aware.methods import METHODS
from trainers.sweep.running import expand


def test_the_name_of_a_run_depends_on_what_decides_the_result_alone():
    one = train_config({"method": "sam", "rho": 0.05, "method_options": {"p": 2.0}})
    assert one.run_id == train_config({"method": "sam"}).run_id  # defaults, spelled out or not
    assert one.run_id == train_config({"method": "sam", "rho_min": 0.0, "obf_gamma": 0.3}).run_id  # not read by SAM
    assert one.run_id != train_config({"method": "sam", "rho": 0.06}).run_id
    assert one.run_id != train_config({"method": "sam", "seed": 1}).run_id
    assert train_config({"model_options": {"width": 256}}).run_id == train_config({}).run_id
    assert train_config({"checkpoints": [5, 2]}).run_id == train_config({"checkpoints": [2, 5, 100]}).run_id


def test_a_plain_method_has_no_radius_and_its_own_base():
    resolved = train_config({"method": "adamw", "momentum": 0.3}).resolved()
    assert (resolved.rho, resolved.base, resolved.ascent) == (None, "adamw", None)
    assert train_config({"method": "adamw", "momentum": 0.3}).run_id == train_config({"method": "adamw"}).run_id


def test_obf_is_a_method_and_an_option_of_others():
    assert train_config({"method": "obf"}).resolved().ascent == "obf"
    composed = train_config({"method": "asam", "ascent": "obf", "loss": "bce"}).resolved()
    assert (composed.ascent, composed.obf_link) == ("obf", "sigmoid")


def test_resolving_twice_changes_nothing():
    config = train_config({"method": "gsam", "rho_schedule": "lr", "checkpoints": [3, 1]})
    assert config.resolved().resolved() == config.resolved()
    assert config.resolved().run_id == config.run_id


@pytest.mark.parametrize(("values", "message"), [
    ({"rhoo": 0.1}, r"unknown key `rhoo`\. Did you mean 'rho'\?"),
    ({"zzz": 0.1}, r"unknown key `zzz`\. Known keys"),
    ({"method": "smm"}, r"`method` 'smm' is unknown.*Did you mean 'sam'"),
    ({"model": "resnet2"}, r"`model` 'resnet2' is unknown.*Did you mean 'resnet20'"),
    ({"dataset": "digit"}, r"`dataset` 'digit' is unknown.*Did you mean 'digits'"),
    ({"dataset": "cifar01:/data"}, r"`dataset` 'cifar01:/data' is unknown.*Did you mean 'cifar10'"),
    ({"model": "tim:vit-tiny"}, r"`model` 'tim:vit-tiny' is unknown.*Did you mean 'timm'"),
    ({"rho": -0.1, "method": "sam"}, r"`rho` got -0.1: input should be greater than or equal to 0"),
    ({"rho": math.nan, "method": "sam"}, r"`rho` got nan: input should be a finite number"),
    ({"rho": 0.1}, r"`rho` has no meaning for method 'sgd'"),
    ({"epochs": "many"}, r"`epochs` got 'many'"),
    ({"epochs": 0}, r"`epochs` got 0"),
    ({"lr": 0}, r"`lr` got 0"),
    ({"method": "gsam", "method_options": {"alhpa": 1}}, r"method 'gsam' has no option `alhpa`.*Did you mean 'alpha'"),
    ({"method": "gsam", "method_options": {"alpha": "x"}}, r"option `alpha` of method 'gsam' got 'x'"),
    ({"model_options": {"widht": 3}}, r"model 'mlp' has no option `widht`.*Did you mean 'width'"),
    ({"method": "sam", "m": 64}, r"`m` must be at most the batch size 32, got 64"),
    ({"checkpoints": [200]}, r"`checkpoints` names epochs \[200\] beyond the last epoch 100"),
    ({"nesterov": True, "momentum": 0}, r"`nesterov` needs `momentum` above 0"),
    ({"obf_classes": 0.5, "method": "obf"}, r"`obf_classes` must be above 1"),
])  # fmt: skip
def test_bad_values_get_one_clear_message(values, message):
    with pytest.raises(ValueError, match=message):
        train_config(values)


@pytest.mark.parametrize(("values", "message"), [
    ({"m": 16, "micro_batch": 8}, r"`micro_batch` 8 is below `m` 16, and `m` below the batch size 32: .* at least 16"),
    ({"m": 8, "sharing": "batch"}, r"`sharing` 'batch' needs one perturbation for the whole batch, and `m` 8"),
    ({"sharing": "group"}, r"`group_size` goes with `sharing` 'group', got None with 'group'"),
    ({"group_size": 2}, r"`group_size` goes with `sharing` 'group', got 2 with None"),
    ({"perturb_from": 0.5, "perturb_until": 0.5}, r"`perturb_from` must be below `perturb_until`, got 0.5 and 0.5"),
    ({"perturb_until": 1.5}, r"`perturb_until` got 1.5"),
    ({"rho_schedule": "linear"}, r"`rho_schedule` 'linear' needs `rho_warmup_epochs` above 0"),
    ({"gate": "sometimes"}, r"`gate` got 'sometimes'"),
    ({"precision": "float8"}, r"`precision` got 'float8'"),
    ({"base": "bsam"}, r"`base` 'bsam' belongs to method 'bsam', got method 'sam'"),
    ({"method": "randsam", "ascent": "obf"}, r"`ascent` 'obf' has no meaning for method 'randsam'"),
])  # fmt: skip
def test_keys_that_do_not_go_together_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        train_config({"method": "sam", **values})


KEPT = {  # as the first release named them
    "5e7028fb9925": {},
    "167b6e509361": {"lr": 0.2, "seed": 3},
    "59b4742af1d3": {"method": "adamw", "epochs": 5},
}
SINCE = {  # as they were named before the method had a specification of its own
    "2e97d50b1f1e": {
        "method": "sam", "gate": "random", "gate_options": {"p": 0.3}, "perturb_from": 0.25, "rho": 0.1,
        "rho_min": 0.01,
        "rho_schedule": "linear", "rho_warmup_epochs": 2,
    },
    "657dbc985754": {
        "method": "gsam", "method_options": {"alpha": 0.3}, "rho": 0.2, "rho_schedule": "lr", "rho_min": 0.05,
        "lr": 0.3, "lr_min": 0.01, "nesterov": True, "momentum": 0.8, "weight_decay": 1e-3, "decay_all": True,
        "grad_clip": 2.0, "batch_size": 64, "m": 16, "same_rng": False, "shrink_perturb": 0.01, "label_smoothing": 0.1,
        "epochs": 7,
        "warmup_epochs": 1.5, "checkpoints": [3, 2], "evaluate_every": 2, "seed": 5, "data_seed": 2,
    },
    "81a8056cb792": {"method": "bsam", "lr": 0.05, "weight_decay": 1e-4, "rho": 0.02},
    "a2e27d0113f2": {
        "method": "asam", "ascent": "obf", "loss": "bce", "obf_classes": -1, "obf_gamma": 0.5,
        "method_options": {"eta": 0.1},
    },
    "ab511ac2f74e": {
        "method": "sam", "sharing": "group", "group_size": 2, "precision": "bfloat16", "base": "adamw",
        "rho_schedule": "cosine",
    },
    "ecef7d543244": {
        "method": "fsam", "micro_batch": 4, "sharing": "chunk", "model": "resnet20", "model_options": {"width": 8},
        "train_size": 300,
    },
    "d755f6836f1c": {
        "method": "esam", "perturb_from": 0.75, "perturb_until": 0.9, "reference_size": 10, "lr_schedule": "step",
        "lr_milestones": [0.3], "lr_factor": 0.5,
    },
    "f015419549af": {"method": "mup2", "base_model_options": {"width": 16}},
    "4504f31a9ba5": {"method": "adamw", "lr": 1e-3, "weight_decay": 0.1, "label_noise": 0.2, "spurious": 0.9},
    "461ac2f91d8c": {
        "method": "looksam", "method_options": {"k": 4}, "rho_schedule": "start_jump", "rho_warmup_epochs": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT | SINCE)
def test_runs_made_before_keep_their_names(name):
    assert train_config((KEPT | SINCE)[name]).run_id == name


def test_the_method_is_passed_whole_and_epochs_become_steps():
    spec = train_config(SINCE["657dbc985754"]).resolved().spec(10, examples=640)
    assert (spec.method, spec.rho, spec.rho_schedule, spec.rho_min) == ("gsam", 0.2, "lr", 0.05)
    assert (spec.lr, spec.lr_min, spec.nesterov, spec.momentum, spec.weight_decay) == (0.3, 0.01, True, 0.8, 1e-3)
    assert (spec.decay_all, spec.grad_clip, spec.same_rng, spec.shrink_perturb) == (True, 2.0, False, 0.01)
    assert (spec.total_steps, spec.steps_per_epoch, spec.examples, spec.window) == (70, 10, 640, None)
    assert spec.options["alpha"] == 0.3
    late = train_config({**SINCE["2e97d50b1f1e"], "epochs": 8}).spec(10)
    assert (late.window, late.rho_steps, late.gate, late.gate_options) == ((20, None), 20, "random", {"p": 0.3})
    assert (late.radius(0.1)(0.1, 0), late.radius(0.1)(0.1, 20)) == (0.01, 0.1)


def test_what_the_method_would_refuse_is_refused_with_the_configuration():
    with pytest.raises(ValueError, match=r"gate 'periodic' has no option `kk`; it has \['k'\]. Did you mean 'k'"):
        train_config({"method": "sam", "gate": "periodic", "gate_options": {"kk": 2}})


@pytest.mark.parametrize("change", [
    {"precision": "bfloat16"}, {"micro_batch": 4}, {"gate": "periodic"}, {"perturb_from": 0.5}, {"perturb_until": 0.5},
    {"sharing": "global"}, {"rho_schedule": "cosine"}, {"reference_size": 10},
    {"rho_schedule": "linear", "rho_warmup_epochs": 2}, {"gate": "periodic", "gate_options": {"k": 3}},
], ids=str)  # fmt: skip
def test_new_keys_name_other_runs_where_they_are_read_and_only_there(change):
    assert train_config({"method": "sam", **change}).run_id != train_config({"method": "sam"}).run_id
    plain = train_config({"method": "sgd", **change}).resolved()
    read = {"precision", "micro_batch"} & set(change)
    assert (plain.run_id == train_config({}).run_id) == (not read)
    assert train_config(plain.as_dict()) == plain


@pytest.mark.parametrize("unread", [
    {"micro_batch": 32}, {"m": 32}, {"m": 40 - 8, "sharing": "chunk"}, {"sharing": "batch"}, {"sharing": "chunk"},
    {"gate_options": {"k": 3}}, {"rho_warmup_epochs": 3}, {"rho_min": 0.01},
], ids=str)  # fmt: skip
def test_what_is_not_read_does_not_name_a_run(unread):
    assert train_config({"method": "sam", **unread}).run_id == train_config({"method": "sam"}).run_id


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resolves_to_a_configuration_that_reads_back(method):
    resolved = train_config({"method": method}).resolved()
    assert train_config(resolved.as_dict()) == resolved


def test_every_key_is_documented():
    assert [k for k, f in TrainConfig.model_fields.items() if not f.description] == []


def test_each_seed_may_be_a_draw_of_the_data():
    config = train_config({"data_seed": "seed", "seed": 3})
    assert (config.seed, config.data_seed) == (3, 3)
    assert config.run_id == train_config({"data_seed": 3, "seed": 3}).run_id
    assert train_config({"data_seed": "seed"}).data_seed == 0
    with pytest.raises(ValueError, match="data_seed"):
        train_config({"data_seed": "other"})


def test_a_sweep_over_seeds_draws_the_data_anew():
    configs = expand({"data_seed": "seed"}, {"seed": [0, 2], "lr": [0.1, 0.2]})
    assert [(c.seed, c.data_seed) for c in configs] == [(0, 0), (0, 0), (2, 2), (2, 2)]
