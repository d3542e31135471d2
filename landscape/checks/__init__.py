"""What is checked of a risk before anything is computed: that its loss adds up over batches, and is a function."""

from landscape.checks.additivity import NotAdditiveError, plain_mean, require_additive, require_chunks, require_cut
from landscape.checks.repeatability import require_repeatable
from landscape.checks.trust import Trust

__all__ = [
    "NotAdditiveError",
    "Trust",
    "plain_mean",
    "require_additive",
    "require_chunks",
    "require_cut",
    "require_repeatable",
]
