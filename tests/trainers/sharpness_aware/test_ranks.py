"""Several processes: perturbations of a rank, a group or all, against the methods by hand in one process."""

import numpy as np
import pytest
import torch
import workers_by_hand as by_hand
from workers import pool
from workers_methods import METHODS, RHO, circles
from workers_problem import SIZES, data, joined, start

pytestmark = pytest.mark.xdist_group("ranks")

BACKENDS = [
    "gloo",
    pytest.param(
        "nccl",
        marks=pytest.mark.skipif(torch.cuda.device_count() < 4, reason="NCCL needs a CUDA device for each of 4 ranks"),
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sharing", ["chunk", "group", "global"])
@pytest.mark.parametrize("method", METHODS)
def test_each_sharing_equals_the_method_by_hand(method, sharing, backend):
    options = {"rho": RHO, "sharing": sharing, **METHODS[method]}
    if sharing == "group":
        options["group_size"] = 2
    reference = SIZES if method == "ssam_f" else None
    results = pool().run(
        "workers_steps",
        "train",
        ranks=4,
        backend=backend,
        method=method,
        options=options,
        ascends=method == "obf",
        reference=reference,
    )
    steps = [circles(batches, sharing) for batches in data(3)]
    expected, kept = by_hand.run(
        getattr(by_hand, method),
        steps,
        rho=RHO,
        lr=0.1,
        momentum=0.9,
        reference=joined(data(1, SIZES, seed=3)[0]),
    )
    for t, w in enumerate(expected):
        for result in results:
            np.testing.assert_array_equal(result["weights"][t], results[0]["weights"][t])  # all ranks, bit for bit
        np.testing.assert_allclose(results[0]["weights"][t], w.numpy(), rtol=1e-11, atol=1e-12)
    assert not np.allclose(results[0]["weights"][-1], start(), atol=1e-3)
    if method == "aesam":
        modes = [record["mode"] == "perturbed" for record in results[0]["records"]]
        assert modes == kept["modes"]
        assert len(set(modes)) == 2, "the gate must open and close for the test to say something"
    first = results[0]["records"][0]
    shared = {"chunk": SIZES[0], "group": SIZES[0] + SIZES[1], "global": sum(SIZES)}[sharing]
    if first["mode"] == "perturbed" and method not in ("randsam",):
        assert (first["m"], first["m_global"]) == (SIZES[0], shared)
