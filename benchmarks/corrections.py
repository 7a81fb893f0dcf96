"""Mean probability over prevalence of every loss and sampler, before and after the corrections.

No network is trained: for each lesion with a known risk, the probability that minimises the
expected loss is computed numerically. This is what an unlimited network on unlimited rows learns.

    python benchmarks/corrections.py
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float64
from scipy.special import expit
from scipy.stats import norm

from skinmm.data.sampling import SAMPLERS
from skinmm.evaluation.correction import correct_prior, invert_loss
from skinmm.training.losses import LOSSES, Loss

Shares = Float64[np.ndarray, "n 2"]


@dataclass(frozen=True)
class Case:
    """A loss with a sampler, and the cohort's rows."""

    loss: str
    loss_args: dict[str, Any] = field(default_factory=dict)
    sampler: str = "shuffle"
    sampler_args: dict[str, Any] = field(default_factory=dict)
    benign: int = 32_542
    malignant: int = 584


POWER: Final = {"power": 0.5}
CASES: Final[dict[str, Case]] = {
    "cross_entropy": Case("cross_entropy"),
    "cross_entropy, weighted": Case("cross_entropy", {}, "weighted"),
    "cross_entropy, weighted .5": Case("cross_entropy", {}, "weighted", POWER),
    "cross_entropy, undersample": Case("cross_entropy", {}, "undersample", {"ratio": 3.0}),
    "weighted_cross_entropy .5, weighted .5": Case(
        "weighted_cross_entropy", POWER, "weighted", POWER
    ),
    "focal 2": Case("focal"),
    "focal 0.5": Case("focal", {"gamma": 0.5}),
    "focal 5, balanced": Case("focal", {"gamma": 5.0}, "balanced"),
    "focal 2, alpha .25": Case("focal", {"alpha": 0.25}),
    "focal 2, alpha .75": Case("focal", {"alpha": 0.75}),
    "focal 2, weighted .5 (siim_isic_b3)": Case("focal", {}, "weighted", POWER),
    "label_smoothing .1": Case("label_smoothing"),
    "label_smoothing .3, oversample": Case("label_smoothing", {"smoothing": 0.3}, "oversample"),
    "label_smoothing .1, 20 % malignant (demo)": Case("label_smoothing", benign=224, malignant=56),
    "ldam": Case("ldam"),
    "ldam 1, scale 3, balanced": Case("ldam", {"margin": 1.0, "scale": 3.0}, "balanced"),
    "asymmetric": Case("asymmetric"),
    "asymmetric 2 and 0, no margin, balanced": Case(
        "asymmetric",
        {"gamma_negative": 2.0, "gamma_positive": 0.0, "margin": 0.0},
        "balanced",
    ),
}


def make_risks(prevalence: float, rows: int = 400) -> Float64[np.ndarray, " rows"]:
    """Return normal quantiles of log odds, shifted to a mean risk."""
    spread = 1.5 * norm.ppf((np.arange(rows) + 0.5) / rows)
    low, high = -20.0, 20.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(spread + middle).mean() < prevalence else (low, middle)
    return expit(spread + low)


def minimise(loss: Loss, risks: Float64[np.ndarray, " n"]) -> Shares:
    """Return the probabilities with the lowest expected loss for lesions of known risk.

    The expected loss is convex in the difference of the two logits: its root is bisected.
    """
    risk = torch.from_numpy(risks)
    low, high = torch.full_like(risk, -60), torch.full_like(risk, 60)
    for _ in range(80):
        middle = ((low + high) / 2).requires_grad_()
        logits = torch.stack([-middle / 2, middle / 2], dim=1)
        # The loss is a mean over rows, so that each row's slope is its own.
        slopes = [
            torch.autograd.grad(
                loss(logits, torch.full((len(risk),), target)), middle, retain_graph=True
            )[0]
            for target in (0, 1)
        ]
        rises = (1 - risk) * slopes[0] + risk * slopes[1] > 0
        low = torch.where(rises, low, middle.detach())
        high = torch.where(rises, middle.detach(), high)
    return torch.stack([-low / 2, low / 2], dim=1).softmax(dim=1).numpy()


def correct(case: Case) -> tuple[float, float, float]:
    """Return mean probability over prevalence: of the network, by the prior alone, corrected."""
    counts = np.array([case.benign, case.malignant])
    natural = counts / counts.sum()
    labels = np.repeat([0, 1], counts)
    drawn = SAMPLERS[case.sampler](**case.sampler_args).prior(labels)
    loss = LOSSES[case.loss](torch.from_numpy(counts), **case.loss_args)
    risks = make_risks(natural[1])
    sampled = correct_prior(np.column_stack([1 - risks, risks]), natural, drawn)
    network = minimise(loss, sampled[:, 1])
    trained = drawn * loss.weights.double().numpy()
    prior = (trained / trained.sum(), natural)
    results = (
        network,
        correct_prior(network, *prior),
        correct_prior(invert_loss(network, loss.inverse or {}), *prior),
    )
    before, prior_alone, corrected = (float(p[:, 1].mean() / risks.mean()) for p in results)
    return before, prior_alone, corrected


def weigh_patients(risk: float = 0.018, images: Sequence[int] = (2, 100)) -> float:
    """Return the same for `patient_balanced` if an image reveals its patient's number of images.

    Half of the patients have few images, half have many, of the same risk; within a class every
    patient counts alike, so that a benign image of a patient with many is drawn less often.
    """
    number = np.array(images, dtype=np.float64)
    malignant = np.ones(2) * risk * number  # rows of a kind of patient, each with one or none
    benign = (1 - risk) * number
    by_patient = np.column_stack([np.ones(2) / 2, malignant / malignant.sum()])
    learnt = by_patient / by_patient.sum(axis=1, keepdims=True)
    p = correct_prior(learnt, np.array([0.5, 0.5]), np.array([1 - risk, risk]))[:, 1]
    return float((p * (malignant + benign)).sum() / malignant.sum())


def main() -> None:
    """Print the table as Markdown."""
    print("| loss, sampler | network | prior alone | loss, then prior |\n|---|---|---|---|")
    for name, case in CASES.items():
        print(f"| {name} | {' | '.join(f'{ratio:.3f}' for ratio in correct(case))} |")
    print(f"| cross_entropy, patient_balanced | | | {weigh_patients():.3f} |")


if __name__ == "__main__":
    main()
