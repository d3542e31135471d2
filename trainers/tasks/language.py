"""Language: the next token at each place of a sequence, or the hidden ones."""

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from landscape.labels import IGNORED
from landscape.memory import require
from trainers.data.sources.text import TextReading
from trainers.randomness import seeded

CHECKED = 2  # sequences by which a model is checked
COPIES, FLOAT = 4, 4  # logits, their logarithms and two gradients; bytes of a number


class Language:
    """Learns tokens y of sequences x (n, T) from logits (n, V, T), with the classes on the second axis as torch has it.

    The loss is the cross-entropy in nats, as a mean over the tokens that are targets; what a batch counts for is their
    number. Places without a target have the label -100.

    Args:
        context: Tokens of a sequence.
        tokenizer: See `TextReading`, as for the others.
        tokenizer_digest: See there.
        packing: See there.
        objective: See there.
    """

    name = "cross_entropy_of_tokens"
    decides = False  # an example has many decisions
    loss = staticmethod(F.cross_entropy)

    def __init__(
        self,
        *,
        context: Annotated[int, Field(ge=2)] = 128,
        tokenizer: str = "bytes",
        tokenizer_digest: str = "",
        packing: Literal["packed", "padded"] = "packed",
        objective: Literal["next", "masked"] = "next",
    ) -> None:
        self.reading = TextReading(context, tokenizer, tokenizer_digest, packing, objective)

    def check_targets(self, y: Int[Tensor, "n ..."], where: str) -> None:
        """Check the targets of a data set.

        Raises:
            ValueError: If they are not tokens of sequences, or a sequence has no target.
        """
        if y.ndim != 2 or y.is_floating_point():
            raise ValueError(
                f"`dataset` {where}: targets are {y.dtype} of shape {tuple(y.shape)}, and `task` 'language' learns "
                f"tokens, whole numbers of shape (n, tokens): take pydoc, text:FILE, hf:PATH, or a function that "
                f"returns such."
            )
        if bool(((y < 0) & (y != IGNORED)).any()):
            raise ValueError(
                f"`dataset` {where}: a target is {int(y[(y < 0) & (y != IGNORED)][0])}: let tokens count from 0, and "
                f"places without a target have {IGNORED}."
            )
        empty = (y == IGNORED).all(1).nonzero()[:, 0].tolist()
        if empty:
            raise ValueError(
                f"`dataset` {where}: {len(empty)} of {len(y)} sequences have no target, such as number {empty[0]}: "
                f"leave them out."
            )

    def counts(self, targets: Int[Tensor, "n t"]) -> Float[Tensor, " n"]:
        """What each sequence counts for: its targets."""
        return (targets != IGNORED).sum(1).double()

    def weight(self, targets: Int[Tensor, "n t"]) -> float:
        """What a batch counts for."""
        return float((targets != IGNORED).sum())

    def each(self, outputs: Float[Tensor, "n v t"], targets: Int[Tensor, "n t"]) -> Float[Tensor, " n"]:
        """The mean loss of a sequence's targets."""
        losses = F.cross_entropy(outputs, targets, reduction="none")
        return losses.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)

    def scores(self, outputs: Float[Tensor, "n v t"], targets: Int[Tensor, "n t"]) -> dict[str, Float[Tensor, " n"]]:
        """The share of a sequence's targets that are another token than the one with the largest logit."""
        there = targets != IGNORED
        wrong = (outputs.argmax(1) != targets) & there
        return {"token_error": wrong.sum(1).to(outputs.dtype) / there.sum(1).clamp(min=1)}

    def of_loss(self, loss: float, bytes_per_token: float | None) -> dict[str, float]:
        """What a mean loss says: perplexity exp(loss), and bits per byte, loss / ln 2 / (bytes a token).

        Args:
            loss: In nats a token.
            bytes_per_token: Mean of the corpus; None where it is not known, and there are no bits per byte.
        """
        found = {"perplexity": math.exp(loss) if loss < math.log(1e300) else math.inf}
        if bytes_per_token is not None:
            found["bits_per_byte"] = loss / math.log(2) / bytes_per_token
        return found

    def tokens(
        self, outputs: Float[Tensor, "... n v t"], targets: Int[Tensor, "n t"]
    ) -> tuple[Float[Tensor, "... k v"], Int[Tensor, " k"]]:
        """Logits and labels of the tokens that are targets, one row each."""
        there = targets != IGNORED
        return outputs.movedim(-2, -1)[..., there, :], targets[there]

    def check_memory(self, x: Int[Tensor, "n t"], *, vocabulary: int, chunk: int) -> None:
        """Check, before anything is computed, that the logits of a pass fit, with three more tensors of their size.

        Raises:
            MemoryError: If they do not, with the number of bytes.
        """
        require(
            COPIES * FLOAT * chunk * x[:1].numel() * vocabulary,
            x.device,
            what=f"A pass of {chunk} sequences of {x[:1].numel()} tokens, with {vocabulary} logits each,",
            instead="lower `micro_batch` or `context`, or take a smaller vocabulary",
        )

    def check_model(self, model: nn.Module, x: Tensor, *, vocabulary: int, name: str) -> None:
        """Check, on a few sequences in evaluation mode, what a model gives and what it sees; it stays as it was.

        Args:
            model: To be checked.
            x: Sequences, on its device.
            vocabulary: How many tokens there are.
            name: Of the model, for messages.

        Raises:
            ValueError: If it does not give logits (n, V, T); if it predicts the next token and sees it; or if it
                predicts hidden tokens and does not see what follows.
        """
        if x.is_floating_point() or x.ndim != 2:
            raise ValueError(f"`task` 'language' needs tokens as inputs, got {x.dtype} of shape {tuple(x.shape)}.")
        if bool(((x < 0) | (x >= vocabulary)).any()):
            raise ValueError(
                f"`dataset` has the token {int(x.max() if x.max() >= vocabulary else x.min())}, outside of the "
                f"vocabulary 0 to {vocabulary - 1}."
            )
        x, training = x[:CHECKED], model.training
        other = x.clone()
        other[:, -1] = (other[:, -1] + 1) % vocabulary
        try:
            with torch.no_grad(), seeded(0):
                model.eval()
                given, changed = model(x), model(other)
        finally:
            model.train(training)
        self.check_outputs(given, x, vocabulary=vocabulary, name=name)
        sees = not torch.equal(given[..., 0], changed[..., 0])
        if sees and self.reading.objective == "next":
            raise ValueError(
                f"`model` {name!r} sees what follows a place, and is to tell the next token: mask its attention (gpt: "
                f"--model-options causal True), or take --task-options objective masked."
            )
        if not sees and self.reading.objective == "masked":
            raise ValueError(
                f"`model` {name!r} sees nothing that follows a place, and is to tell hidden tokens from both sides: "
                f"take a model that does (gpt: --model-options causal False), or --task-options objective next."
            )

    def check_outputs(self, given: Any, x: Tensor, *, vocabulary: int, name: str) -> None:
        """Check the shape of a model's outputs on sequences.

        Raises:
            ValueError: If they are no logits (n, V, T).
        """
        wanted = f"logits of shape (n, tokens of the vocabulary, {x.shape[1]}), the classes on the second axis"
        if not isinstance(given, Tensor):
            raise ValueError(f"`model` {name!r} must return {wanted}, got {type(given).__name__}: return its logits.")
        if given.ndim != 3 or given.shape[0] != len(x) or given.shape[2] != x.shape[1]:
            raise ValueError(f"`model` {name!r} must return {wanted}, got {tuple(given.shape)}: transpose them.")
        if given.shape[1] < vocabulary:
            raise ValueError(
                f"`model` {name!r} has a vocabulary of {given.shape[1]} tokens, and the text {vocabulary}: let it have "
                f"as many (vocab_size of --model-options), or take another `tokenizer`."
            )
