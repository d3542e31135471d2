"""Which methods the tests of ranks go through, and which ranks share a perturbation."""

import workers_by_hand as by_hand
from workers_problem import joined

RHO = 0.3
METHODS = {
    "sam": {},
    "usam": {},
    "asam": {},
    "gsam": {},
    "obf": {},
    "fsam": {},
    "looksam": {"k": 2},
    "wsam": {},
    "crsam": {},
    "stablesam": {},
    "randsam": {},
    "rsam": {},
    "tracesam": {},
    "frobsam": {},
    "ssam_f": {"steps_per_epoch": 1, "update_epochs": 2},
    "ssam_d": {"steps_per_epoch": 1, "update_epochs": 1},
    "aesam": {"lambda1": by_hand.AE_THRESHOLD, "lambda2": by_hand.AE_THRESHOLD},
    "bsam": {"examples": 50},
}


def circles(batches, sharing, group_size=2):
    """The batches of those that share a perturbation."""
    if sharing == "global":
        return [joined(batches)]
    if sharing == "group":
        return [joined(batches[i : i + group_size]) for i in range(0, len(batches), group_size)]
    return batches
