"""The subjects of the curvature benchmark, by key: full and quick sizes, trained for a moment or not at all."""

from typing import Protocol

import torch

from benchmarks.subjects import Subject, network, path_graph, prescribed, small_tanh_network


class MakeSubject(Protocol):
    """Makes a subject; `untrained` leaves its initialisation, for what does not depend on the weights."""

    def __call__(self, quick: bool = False, *, untrained: bool = False) -> Subject: ...


def mlp(quick: bool = False, *, untrained: bool = False) -> Subject:
    """Trained to a training error of zero, on all the data that it was trained on."""
    if quick:
        return network("MLP 64-16-16-10, 100 examples", "mlp", sizes=(100,), steps=0 if untrained else 20, width=16)
    return network("MLP 64-256-256-10, 1000 examples", "mlp", sizes=(1000,), steps=0 if untrained else 300)


def resnet_large(quick: bool = False, *, untrained: bool = False) -> Subject:
    if quick:
        return network(
            "ResNet-8 width 4, batch 16, 8 x 8", "resnet20", sizes=(16,), steps=0 if untrained else 5, width=4, blocks=1
        )
    return network(
        "ResNet-20 width 16, batch 128, 32 x 32", "resnet20", side=32, channels=3, steps=0 if untrained else 25
    )


def resnet(quick: bool = False, *, untrained: bool = False) -> Subject:
    if quick:
        return resnet_large(quick, untrained=untrained)
    return network("ResNet-20 width 16, batch 128, 8 x 8", "resnet20", steps=0 if untrained else 100)


def resnet_batches(quick: bool = False, *, untrained: bool = False) -> Subject:
    if quick:
        return network("ResNet-8 width 4, 2 x 8, 8 x 8", "resnet20", sizes=(8, 8), width=4, blocks=1)
    return network("ResNet-20 width 16, 4 x 64, 8 x 8", "resnet20", sizes=(64,) * 4, steps=0 if untrained else 100)


def resnet_narrow(quick: bool = False, *, untrained: bool = False) -> Subject:
    if quick:
        return resnet_large(quick, untrained=untrained)
    return network(
        "ResNet-20 width 8, batch 32, 8 x 8", "resnet20", sizes=(32,), steps=0 if untrained else 100, width=8
    )


def vit(quick: bool = False, *, untrained: bool = False) -> Subject:
    if quick:
        return network("ViT dim 16 depth 1, batch 8, 8 x 8", "vit", sizes=(8,), dim=16, depth=1, heads=2)
    return network(
        "ViT patch 4, batch 64, 32 x 32", "vit", side=32, channels=3, sizes=(64,), lr=0.02,
        steps=0 if untrained else 60, patch=4,
    )  # fmt: skip


def vit_small(quick: bool = False, *, untrained: bool = False) -> Subject:
    if quick:
        return vit(quick, untrained=untrained)
    return network("ViT patch 2, batch 64, 8 x 8", "vit", sizes=(64,), lr=0.02, steps=0 if untrained else 200)


SUBJECTS: dict[str, MakeSubject] = {
    "mlp": mlp, "resnet-large": resnet_large, "resnet": resnet, "resnet-batches": resnet_batches,
    "resnet-narrow": resnet_narrow, "vit": vit, "vit-small": vit_small,
}  # fmt: skip


def flat(p: int = 200) -> Subject:
    """A spectrum without outliers, from 1 to 3: the case that is good for Hutchinson's estimator."""
    return prescribed("flat spectrum [1, 3], p = 200", [1 + 2 * i / (p - 1) for i in range(p)])


def both_signs() -> Subject:
    """+5 and -5 outside a bulk between -4 and 4: equal moduli, so that power iteration has no limit."""
    return prescribed("spectrum with +5 and -5, p = 60", [5, -5, *((-1) ** i * 4 * i / 60 for i in range(1, 59))])


def clustered() -> Subject:
    """Nine eigenvalues between 9.9 and 10 above a bulk in [0, 9]."""
    return prescribed(
        "nine clustered at the top, p = 300",
        [*(10 - 0.1 * i / 8 for i in range(9)), *(9 * i / 290 for i in range(291))],
    )


def oracles() -> list[tuple[Subject, int]]:
    """Subjects whose largest eigenvalues are known, with how many of them are asked for."""
    return [
        (both_signs(), 1),
        (small_tanh_network("tanh MLP 2-3-2, one batch of 5"), 1),
        (small_tanh_network("tanh MLP 2-3-2, batches of 3 and 2", (3, 2)), 1),
        (path_graph("path graph, p = 100: dense at the top"), 1),
        (clustered(), 9),
    ]


def small_attention() -> Subject:
    """An attention layer small enough for any test, for kernels without second derivatives."""
    subject = vit(quick=True, untrained=True)
    assert subject.dtype == torch.float32
    return subject
