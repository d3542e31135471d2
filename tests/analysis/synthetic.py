"""A made-up study with the shape of a real one: six methods, several configurations, two seeds, runs that went wrong.

Numbers come from a seeded generator and mean nothing; what matters is that every table has the columns, gaps and
accidents of real ones. `write` lays the same study out on disk. Studies are kept between tests: change a copy.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from made_surfaces import made
from scipy.stats import kendalltau

from analysis.results import CEILINGS, COMPARISONS, CORRELATIONS, HISTORY, StudyResults
from analysis.statistics.catalogue import STATISTICS
from analysis.surfaces.files import write_surface
from analysis.table import COLUMNS, Row, check, join_config, last_step, with_variant

METHODS = (("sgd", None), ("sam", None), ("asam", None), ("gsam", None), ("obf", None), ("sam", "obf"))
RHOS = {"asam": (0.2, 0.5, 2.0)}
TARGETS = ("gap_error", "test_error", "ood_error_mean")
CONTROLS = ("ece", "brier", "test_loss", "bin_accuracy", "share_forgotten")
FORGETTING = ("F_mi[obf, iso-loss, m=16, held_out]", "cw[sam, own, m=16, exposed]")
SHARPNESS = ("top_eigenvalue", "ascent_sharpness[rho=0.05]")


def configs(methods=METHODS, seeds=2):
    out = {}
    for method, ascent in methods:
        grid = (
            [(0.0, lr) for lr in (0.05, 0.1)]
            if method == "sgd"
            else [(r, 0.1) for r in RHOS.get(method, (0.02, 0.05, 0.1))]
        )
        for rho, lr in grid:
            for seed in range(seeds):
                run = f"{method}{'-obf' if ascent else ''}-r{rho:g}-l{lr:g}-s{seed}"
                out[run] = {"method": method, "ascent": ascent, "rho": rho, "lr": lr, "seed": seed, "model": "mlp"}
    return out


def history(run, config, *, epochs, diverged, rng):
    e = np.arange(1, epochs + 1)
    base = 0.1 + 0.05 * (config["method"] == "sgd") + 0.3 * abs(config["rho"] - 0.05) / (1 + 10 * config["rho"])
    test = base + 0.6 * np.exp(-e / 4) + 0.005 * rng.standard_normal(epochs)
    train = 0.7 * np.exp(-e / 3) + 0.002 * rng.random(epochs)
    frame = pd.DataFrame(dict.fromkeys(HISTORY, np.nan), index=range(epochs))
    frame = frame.assign(
        run_id=run, epoch=e, step=e * 25, lr=config["lr"], rho=config["rho"], loss=2 * train, train_loss=2 * train,
        train_error=train, train_clean_error=train, validation_loss=3 * test, validation_error=test + 0.002,
        test_loss=3 * test, test_error=test, perturbation_norm=config["rho"], seconds=0.5,
    )  # fmt: skip
    return frame.iloc[: epochs // 2].assign(loss=np.nan) if diverged else frame


def measured(run, config, past, *, epochs, rng):
    """The measures of one finished run: sharpness, norms and targets at the end, forgetting at four epochs."""
    end = past.iloc[-1]
    sharp = 20 * end["test_error"] / (1 + 8 * config["rho"]) * np.exp(0.2 * rng.standard_normal())
    rows = [
        Row("test_error", end["test_error"], 0.004, split="test"),
        Row("gap_error", end["test_error"] - end["train_error"], 0.005, split="test"),
        Row("ood_error_mean", end["test_error"] * 1.5 + 0.01 * rng.standard_normal(), 0.01, split="ood"),
        *calibrated(end["test_error"]),
        Row("top_eigenvalue", sharp, 0.01 * sharp),
        Row("trace", 30 * sharp * np.exp(0.3 * rng.standard_normal()), 3.0, draws=32),
        Row("ascent_sharpness", sharp * 0.01, options={"rho": 0.05}),
        Row("ascent_sharpness", sharp * 0.2, options={"rho": 0.5}),
        Row("ascent_sharpness", sharp * 0.04, options={"rho": 0.15}),
        *binned(end["test_error"]),
        *counts(config["method"]),
        Row("m_sharpness", sharp * 0.02 * np.exp(0.1 * rng.standard_normal()), options={"rho": 0.05, "m": 16}),
        Row("average_sharpness", 0.01 * rng.random(), 0.001, draws=16, options={"rho": 0.01}, converged=False),
        Row("gradient_norm", 0.1 * rng.random()),
        Row("parameter_norm", 10 + rng.standard_normal(), warnings="two tied parameters"),
        Row("b_marg", 0.02 * rng.random()),
        Row("log_prod_of_spec_over_margin", 5 + sharp + rng.standard_normal()),
    ]
    table = [records(rows, run, int(end["step"]), epochs)]
    level = {"exposed": 1.0, "other_train": 0.15, "held_out": 0.25}
    for epoch in np.linspace(2, epochs, 4).astype(int):
        rows = []
        for provider in ("sam", "obf", "random"):
            for radius in ("own", "iso-loss"):
                if radius == "own" and (config["method"] == "sgd" or provider == "random"):
                    continue
                options = {"provider": provider, "radius": radius, "m": 16}
                for split, share in level.items():
                    size = share * {"sam": 1.0, "obf": 0.4, "random": 0.05}[provider] / np.sqrt(epoch)
                    noise = np.exp(0.2 * rng.standard_normal(3))
                    values = size * noise * np.array([0.3, 0.1, -0.05])
                    if split == "held_out":
                        values[1] = 0.3 - end["test_error"] + 0.01 * rng.standard_normal()
                    for measure, value in zip(("cw", "F_mi", "F_cmi"), values, strict=True):
                        rows.append(Row(measure, value, 0.1 * abs(value), 20, split, options))
                        if epoch == epochs and provider != "random" and radius == "iso-loss" and measure != "F_cmi":
                            rows += [
                                Row(measure, value * factor, 0.1 * abs(value), 20, split, {**options, "m": m})
                                for m, factor in ((1, 1.6), ("all", 0.5))
                                if (m, split) != ("all", "other_train")
                            ]
        if epoch < epochs and config["seed"] == 0:
            rows.append(Row("top_eigenvalue", sharp / np.sqrt(epoch), 0.01))
        table.append(records(rows, run, int(epoch * 25), int(epoch)))
    return [record for part in table for record in part]


def binned(error):
    """Bins of confidence of a model that is too sure."""
    sure = [(b, (b + 0.5) / 15) for b in range(5, 15)]
    return [
        Row("bin_accuracy", max(c - error * (1 - c), 0), 0.02, 10 + 4 * b**2, "test",
            {"bin": b, "bins": 15, "confidence": c})
        for b, c in sure
    ]  # fmt: skip


def counts(method):
    shares = {0: 0.62, 1: 0.17, 2: 0.08, 3: 0.04, 7: 0.01, "never": 0.08}
    return [
        Row("share_forgotten", v, 0.01, 400, options={"protocol": "presentation", "events": k})
        for k, v in shares.items()
        if method != "sgd" or k != 7
    ]


def calibrated(error):
    scores = {"ece": error / 3, "brier": 1.5 * error, "test_loss": 3 * error}
    return [
        row
        for name, value in scores.items()
        for row in (Row(name, value, 0.01, split="test"), Row(f"{name}_scaled", 0.6 * value, 0.01, split="test"))
    ]


def records(rows, run, step, epoch):
    """The rows of one checkpoint; `analysis.table.to_frame` does the same, but a table at a time is slow here."""
    return [
        (run, step, epoch, r.split, r.measure, json.dumps(r.options, sort_keys=True), r.value, r.stderr, r.draws,
         r.converged, r.warnings)
        for r in rows
    ]  # fmt: skip


def correlations(measures, runs):
    rows = with_variant(last_step(measures))
    values = rows.pivot_table(index="run_id", columns="variant", values="value", aggfunc="first")
    out = []
    for target in TARGETS:
        names = [v for v in values.columns if v not in TARGETS and not v.startswith(CONTROLS)]
        for name in names:
            both = values[[name, target]].dropna()
            tau, p = kendalltau(both[name], both[target])
            for coefficient in ("kendall", "spearman", "pearson"):
                half = 1.2 / np.sqrt(len(both))
                out.append({
                    "measure": name, "target": target, "coefficient": coefficient, "value": tau, "low": tau - half,
                    "high": min(tau + half, 1.0), "p": p, "p_adjusted": min(1.0, p * len(names)), "dropped": 2,
                    "n_configurations": len(both) // 2, "n_runs": len(both),
                    "within": -0.3 if name == "top_eigenvalue" else tau / 2,
                    "within_low": np.nan, "within_high": np.nan, "groups": 5, "reversal": name == "top_eigenvalue",
                    "warnings": "", "expected_sign": -1 if name.startswith("F_") else 1,
                })  # fmt: skip
    return pd.DataFrame(out, columns=list(CORRELATIONS))


def extended(stats):
    """The correlations with baselines, coefficients inside cells, floors of p-values and warnings beside them."""
    if stats.empty:
        return stats
    kendall = stats["coefficient"] == "kendall"
    inside = stats["value"].where(kendall) * 0.8
    inside = inside.mask(stats["measure"] == "trace", -inside)
    warned = np.where(stats["measure"] == "gradient_norm", 1.0, 0.0)
    role = np.where(stats["measure"] == "parameter_norm", "baseline", "candidate")
    more = stats.assign(
        role=role, p_floor=1e-4, permuted="freely", stratified=inside,
        stratified_low=inside - 0.2, stratified_high=np.minimum(inside + 0.2, 1.0), stratified_p=0.001,
        stratified_p_adjusted=np.where(kendall, 0.004, np.nan), stratified_p_floor=0.004, stratified_mean=inside,
        cells=4, cells_dropped=1, cell_reversal=kendall & (stats["measure"] == "trace"), warned=warned,
        warned_as=np.where(warned > 0, "two tied parameters: 100 %", ""), correction="max-T",
    )  # fmt: skip
    known = more[more["measure"] == "top_eigenvalue"].assign(role="baseline", reversal=False, expected_sign=0)
    shifts = {"validation_error": 0.1, "train_error": -0.4}
    known = [known.assign(measure=name, value=known["value"] + shift) for name, shift in shifts.items()]
    return pd.concat([more, *known], ignore_index=True)


def families(stats):
    """One row a family and target, of the shape that `correlate` gives it."""
    rows = stats[(stats["coefficient"] == "kendall") & stats["measure"].isin(("top_eigenvalue", FORGETTING[0]))]
    named = rows[["target", "value", "low", "high"]].assign(
        family=np.where(rows["measure"] == "top_eigenvalue", "sharpness", "forgetting"), representative=rows["measure"],
        variants=9, stratified=0.4, stratified_low=0.1, stratified_high=0.6, strongest="trace", strongest_value=0.5,
        best_of_k_p=0.03, p_of_representative=0.2, warnings="",
    )  # fmt: skip
    return named.reindex(columns=STATISTICS["families"].columns.split()).reset_index(drop=True)


def further(stats):
    """The further tables, of the shape that `correlate` gives them; numbers mean nothing."""
    rows = stats.loc[stats["coefficient"] == "kendall", ["measure", "target", "value"]].reset_index(drop=True)
    v = rows["value"]
    keys = rows[["measure", "target"]].assign(warnings=np.where(v > 0.3, "", "few pairs; no pair: lr"))
    ends = {"low": v - 0.3, "high": v + 0.3}
    axes = [
        keys.assign(axis=axis, psi=scale * v, p=0.04, eligible_cells=9, total_cells=12, pairs=9)
        for axis, scale in (("all", 0.5), ("lr", 0.2), ("rho", 0.8))
    ]
    return {
        "families": families(stats),
        "granulated": pd.concat(axes, ignore_index=True),
        "information": keys.assign(
            k=abs(v) / 3, subset="lr+rho", sign_of_psi=np.sign(v), baseline=0.02, excess=abs(v) / 3 - 0.02
        ),
        "sign_errors": keys.assign(
            axis="all", weighting="equal", mean=0.3, median=0.25, p90=0.6, max=1.0, kept=30, oriented="pooled",
            sign=np.sign(v).astype(int),
        ),
        "partial": keys.assign(
            control="train_loss", coefficient="spearman of residuals", value=v / 2, p=0.2, n_configurations=15, **ends
        ),
        "multilevel": keys.assign(
            level="method", pooled=v, within=-v / 3, between=v, reversal=True, se=0.1, p_permutation=0.3, clusters=6,
            random_slope=v / 2,
        ),
        "selection": keys.assign(variants=3, best=rows["measure"], naive=v, held_out=v / 2, chosen_share=0.7),
        "prediction": pd.DataFrame(
            [(t, name, "", "ridge", 5, -0.5, -2.0, 0.3, 0.4, 0.01, 0.012, *(np.nan,) * 4, 15, 6, "") for t in TARGETS
             for name in ("measures", "all baselines")]
            + [(t, "all baselines + measure", m, "ridge", 6, 0.5, np.nan, np.nan, 0.4, 0.01, 0.012, 0.1, -0.1, 0.3,
                0.05, 15, 6, "") for t in TARGETS for m in dict.fromkeys(rows["measure"])],
            columns=["target", "features", "added", "model", "number", "r2", "low", "high", "tau", "mae", "mae_of_mean",
                     "gain", "gain_low", "gain_high", "gain_tau", "n_configurations", "methods", "warnings"],
        ),
        "power": keys.assign(
            value=v, n_configurations=15, smallest_effect=0.45, power=0.6, required_configurations=40.0,
            design_effect=1.4,
        ),
    }  # fmt: skip


@cache
def make(folder=Path("toy"), *, methods=METHODS, seeds=2, epochs=20, seed=0, all_diverged=False):
    rng = np.random.default_rng(seed)
    given = configs(methods, seeds)
    odd = (
        {}
        if all_diverged
        else {"asam-r2-l0.1-s0": "diverged", "gsam-r0.1-l0.1-s1": "diverged", "obf-r0.1-l0.1-s1": "interrupted"}
    )
    runs, histories, rows = [], [], []
    for run, config in given.items():
        status = "diverged" if all_diverged else odd.get(run, "finished")
        past = history(run, config, epochs=epochs, diverged=status != "finished", rng=rng)
        reason = {"diverged": "loss is not finite at step 250", "interrupted": "stopped before it ended"}.get(
            status, ""
        )
        runs.append(
            {"run_id": run, "status": status, "reason": reason, "seconds": 12.5, "epochs": int(past["epoch"].max())}
        )
        histories.append(past)
        if status == "finished":
            rows += measured(run, config, past, epochs=epochs, rng=rng)
    measures = check(pd.DataFrame.from_records(rows, columns=list(COLUMNS)))
    stats = extended(correlations(measures, runs)) if rows else pd.DataFrame(columns=list(CORRELATIONS))
    comparisons = pd.DataFrame(columns=list(COMPARISONS))
    if rows:
        tau = stats[stats["coefficient"] == "kendall"].set_index(["measure", "target"])["value"].abs()
        comparisons = pd.DataFrame([
            {"forgetting": f, "sharpness": s, "target": t, "pairs": "pooled", "tau_forgetting": tau[f, t],
             "tau_sharpness": tau[s, t], "difference": tau[f, t] - tau[s, t], "low": tau[f, t] - tau[s, t] - 0.3,
             "high": tau[f, t] - tau[s, t] + 0.3, "draws": 1, "n_configurations": 30, "warnings": ""}
            for f in FORGETTING for s in SHARPNESS for t in TARGETS[:2] if (f, t) in tau.index
        ], columns=list(COMPARISONS))  # fmt: skip
    ceilings = pd.DataFrame(
        [
            (t, c, 0.8, 0.88, 0.85, 0.9, "F_mi", 0.7, 0.6, 30, "")
            for t in TARGETS
            for c in ("kendall", "spearman", "pearson")
        ]
        if rows
        else [],
        columns=list(CEILINGS),
    )
    study = {
        "name": "toy_study", "command": "landscape study studies/toy.yaml --out toy", "created": "2026-01-02T03:04:05Z",
        "seconds": 1234.5, "runs": list(given),
        "environment": {"python": "3.11.9", "torch": "2.13.0", "platform": "Linux & more", "cores": 2, "commit": "abc"},
    }  # fmt: skip
    return StudyResults(
        folder=Path(folder),
        study=study,
        runs=join_config(pd.DataFrame(runs), given),
        history=join_config(pd.concat(histories, ignore_index=True), given),
        measures=join_config(measures[list(COLUMNS)], given),
        correlations=stats,
        comparisons=comparisons,
        ceilings=ceilings,
        further=further(stats) if rows else {},
        surfaces=surfaces() if rows else {},
    )


def surfaces():
    """Planes of two methods, with the metrics that the report shows."""
    found = {}
    for i, name in enumerate(("sgd", "sam")):
        plane = made(metric="train loss", points=9, top_eigenvalue=3.0 - i, examples={"train": 400, "test": 300})
        values = {"train loss": plane.values["train loss"] * (1 + i), "test error": plane.values["train error"]}
        errors = {"train loss": plane.stderr["train loss"], "test error": plane.stderr["train error"]}
        centre = {"train loss": plane.centre["train loss"], "test error": plane.centre["train error"]}
        found[name] = replace(plane, values=values, stderr=errors, centre=centre)
    return found


def write(results, folder, *, seeds=2):
    """Lay the study out on disk as the earlier commands do."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(results.study))
    given = configs(seeds=seeds)
    for run in results.runs.itertuples():
        here = folder / "runs" / run.run_id
        here.mkdir(parents=True)
        (here / "config.json").write_text(json.dumps({**given[run.run_id], "run_id": run.run_id}))
        if run.status != "interrupted":
            state = {"status": run.status, "reason": run.reason, "seconds": run.seconds}
            (here / "status.json").write_text(json.dumps(state))
        past = results.history[results.history["run_id"] == run.run_id]
        past[list(HISTORY)].to_parquet(here / "history.parquet", index=False)
    results.measures[list(COLUMNS)].to_parquet(folder / "measures.parquet", index=False)
    (folder / "statistics").mkdir()
    for name in ("correlations", "comparisons", "ceilings"):
        getattr(results, name).to_parquet(folder / "statistics" / f"{name}.parquet", index=False)
    for name, table in results.further.items():
        table.to_parquet(folder / "statistics" / f"{name}.parquet", index=False)
    for name, surface in results.surfaces.items():
        write_surface(surface, folder / "surfaces" / f"{name}.npz")
    shown = {name: f"surfaces/{name}.npz" for name in results.surfaces}
    (folder / "surfaces.json").write_text(json.dumps({"surfaces": shown, "rule": ""}))
    return folder
