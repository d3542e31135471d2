"""What is known of every model without measuring sharpness or forgetting: the baselines that a measure must beat.

The errors and losses on training and validation data are baselines too; they are rows of `targets`.
"""

import math
from collections.abc import Callable

from torch import Tensor

from analysis.forgetting.output_bias import output_bias
from analysis.measures.measure import Measure, Rows
from analysis.measures.needs import no_probabilities
from analysis.measures.subject import Subject
from analysis.table import Row
from landscape import norm
from trainers.tasks.task import lead

CONFIDENCE = ("mean_confidence", "mean_entropy")


def baselines(subject: Subject) -> Rows:
    """Entropy and confidence of the outputs, wrong labels fitted, the norm of the weights, and how training was set up.

        mean_confidence, mean_entropy    mean of max_c p_c and of H(p), in nats, on the training and on the validation
                                         inputs; see `output_bias`
        wrong_labels_fitted              share of the wrongly labelled training examples that are predicted as labelled
        parameter_norm                   ‖w‖ over the trainable parameters jointly
        rho, lr, batch_size, steps       radius in the method's own units (0 for methods without one), learning rate
                                         and batch size of the configuration; optimizer steps up to this checkpoint

    A row is left out where there is no such number: without validation examples, without wrong labels that are known
    to be wrong, for weights whose training is not known. None of them sees a label of a validation example.
    """
    rows = _confidence(subject, "train", lambda: subject.train_outputs)
    if len(subject.data.validation):
        rows += _confidence(subject, "held_out", lambda: subject.outputs_on(subject.data.validation))
    return [*rows, *_fitted(subject), Row("parameter_norm", float(norm(subject.risk.theta))), *_settings(subject)]


def _confidence(subject: Subject, split: str, outputs: Callable[[], Tensor]) -> Rows:
    """How sure the outputs are; where they are no distributions over classes, marked rows that say so."""
    why = no_probabilities(subject.task)
    if not why:
        try:
            found = output_bias(subject.probabilities(outputs()).numpy(), split=split)
            return [row for row in found if row.measure in CONFIDENCE]
        except ValueError as error:  # such as outputs of a distribution for each of several tokens
            why = str(error)
    return [Row(name, math.nan, math.nan, 0, split=split, warnings=why) for name in CONFIDENCE]


def _fitted(subject: Subject) -> Rows:
    """The share of wrong labels that the model has learned, where some are known to be wrong."""
    train = subject.data.train
    if no_probabilities(subject.task) or train.y.ndim != 1 or train.y.is_floating_point():
        return []
    given, wrong = train.y.cpu(), train.noisy.cpu()
    if not bool(wrong.any()):
        return []
    outputs, k = subject.train_outputs[wrong], int(wrong.sum())
    if not bool(outputs.isfinite().all()):
        why = "the outputs are not all finite"
        return [Row("wrong_labels_fitted", math.nan, math.nan, k, warnings=why)]
    share = 1 - float(lead(subject.task.scores(outputs, given[wrong]))[1].double().mean())
    return [Row("wrong_labels_fitted", share, math.sqrt(share * (1 - share) / k), k)]


def _settings(subject: Subject) -> Rows:
    """The hyper-parameters of training that sharpness is said to follow."""
    if subject.config is None:
        return []
    config = subject.config.resolved()
    known = {"rho": config.rho or 0.0, "lr": config.lr, "batch_size": config.batch_size, "steps": subject.step}
    return [Row(name, float(value)) for name, value in known.items()]


MEASURES = {
    "baselines": Measure(
        baselines,
        (*CONFIDENCE, "wrong_labels_fitted", "parameter_norm", "rho", "lr", "batch_size", "steps"),
        "what is known without a measure: entropy and confidence of the outputs, wrong labels fitted, norm, settings",
        "baseline",
        "surer, or more of it",
        0,
        "T1 T2 T3 T5 (outputs); T5 (norm)",
        "2/3",
        gradients=0.5,
    ),
}

# Rows whose expected sign is not that of their registry entry; 0 where theory predicts none.
SIGNS = {"mean_confidence": +1, "wrong_labels_fitted": +1, "parameter_norm": +1}
