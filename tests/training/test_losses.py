"""Every loss against one contract, and against other implementations."""

from collections.abc import Callable
from inspect import signature

import numpy as np
import pytest
import torch
from corrections import CASES, correct, minimise, weigh_patients
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.utils.class_weight import compute_class_weight
from timm.loss.asymmetric_loss import AsymmetricLossMultiLabel
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.ops import sigmoid_focal_loss

from skinmm.errors import InputError
from skinmm.evaluation.correction import invert_loss
from skinmm.testing import ContractError, check_loss
from skinmm.training.losses import (
    LDAM,
    LOSSES,
    Asymmetric,
    CrossEntropy,
    Focal,
    LabelSmoothing,
    Loss,
    WeightedCrossEntropy,
)

COUNTS = torch.tensor([60, 30, 10])
BINARY = torch.tensor([90, 10])
TIMM_AVERAGES = "reduction" in signature(AsymmetricLossMultiLabel).parameters  # it summed once
CHOICES: list[Callable[[Tensor], Loss]] = [
    *LOSSES.values(),
    lambda counts: LabelSmoothing(counts, smoothing=0.0),
    lambda counts: WeightedCrossEntropy(counts, power=0.0),
    lambda counts: WeightedCrossEntropy(counts, power=0.5),
    lambda counts: Focal(counts, gamma=0.5, alpha=[0.2, 0.3, 0.5]),
    lambda counts: LDAM(counts, margin=0.0),
    lambda counts: LDAM(counts, margin=1.0, scale=3.0),
    lambda counts: Asymmetric(counts, gamma_negative=2.0, gamma_positive=2.0, margin=0.0),
    lambda counts: Asymmetric(counts, gamma_negative=0.0, gamma_positive=0.0),
]
each_choice = pytest.mark.parametrize("make", CHOICES)


def batch(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=generator)
    return logits, torch.randint(0, classes, (rows,), generator=generator)


@each_choice
def test_a_loss_keeps_the_contract(make: Callable[[Tensor], Loss]) -> None:
    """So two processes with half a batch each have the gradient of one with the whole."""
    check_loss(make)


class Summed(CrossEntropy):
    """A sum over rows."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target, reduction="sum")


def test_a_sum_over_rows_breaks_the_contract() -> None:
    with pytest.raises(ContractError, match="mean: not that of the batch's rows"):
        check_loss(Summed)


@each_choice
def test_every_logit_is_pushed_towards_its_target(make: Callable[[Tensor], Loss]) -> None:
    logits, target = batch(12, 3)
    logits.requires_grad_()
    loss = make(COUNTS)
    (slope,) = torch.autograd.grad(loss(logits, target), logits)
    own, certain = slope.gather(1, target[:, None])[:, 0], torch.zeros(12, dtype=torch.bool)
    if isinstance(loss, Asymmetric):  # with a margin nothing more is asked of such a row
        chance = logits.softmax(dim=1).gather(1, target[:, None])[:, 0]
        certain = chance > 1 - loss.margins[target]
    torch.testing.assert_close(own < 0, ~certain)
    torch.testing.assert_close(slope.sum(dim=1), torch.zeros(12), atol=1e-6, rtol=0)


@each_choice
@pytest.mark.parametrize("scale", [0.0, 30.0, 1e4])
def test_extreme_logits_have_finite_values_and_slopes(
    make: Callable[[Tensor], Loss], scale: float
) -> None:
    logits, target = batch(8, 3)
    logits = (logits * scale).requires_grad_()
    value = make(COUNTS)(logits, target)
    (slope,) = torch.autograd.grad(value, logits)
    assert value.isfinite()
    assert value >= 0
    assert slope.isfinite().all()


@each_choice
def test_a_loss_that_favours_a_class_says_so(make: Callable[[Tensor], Loss]) -> None:
    """It does if it matters which class is called which."""
    (logits, target), loss, order = batch(12, 3), make(COUNTS), torch.tensor([2, 0, 1])
    renamed = loss(logits[:, order], torch.argsort(order)[target])
    assert bool(loss.corrects) == (not torch.allclose(renamed, loss(logits, target)))
    assert loss.weights.shape == (3,)
    assert bool(loss.corrects) or len(set(loss.weights.tolist())) == 1
    assert not loss.state_dict()


@given(st.integers(0, 1000), st.integers(2, 6))
@settings(max_examples=30)
def test_focal_without_focus_is_cross_entropy(seed: int, classes: int) -> None:
    logits, target = batch(9, classes, seed)
    loss = Focal(torch.ones(classes, dtype=torch.long), gamma=0.0)
    torch.testing.assert_close(loss(logits, target), cross_entropy(logits, target))


@given(
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
    st.sampled_from([None, 0.25, 0.75]),
)
@settings(max_examples=40)
def test_focal_of_two_classes_is_torchvision_s(
    seed: int, gamma: float, alpha: float | None
) -> None:
    logits, target = batch(9, 2, seed)
    theirs = sigmoid_focal_loss(
        logits[:, 1] - logits[:, 0],
        target.float(),
        alpha=-1 if alpha is None else alpha,
        gamma=gamma,
        reduction="mean",
    )
    ours = Focal(BINARY, gamma=gamma, alpha=alpha)(logits, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_focal_takes_a_weight_for_every_class() -> None:
    logits, target = batch(20, 3)
    alpha = [0.2, 0.3, 0.5]
    rows = cross_entropy(logits, target, weight=torch.tensor(alpha), reduction="none")
    weighted = Focal(COUNTS, gamma=0.0, alpha=alpha)(logits, target)
    torch.testing.assert_close(weighted, rows.mean())


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
@settings(max_examples=30)
def test_weighted_cross_entropy_is_torch_s_over_the_number_of_rows(seed: int, power: float) -> None:
    logits, target = batch(9, 3, seed)
    labels = np.repeat(np.arange(3), COUNTS.numpy())
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels) ** power
    loss = WeightedCrossEntropy(COUNTS, power=power)
    torch.testing.assert_close(loss.weights, torch.tensor(weights, dtype=torch.float32))
    theirs = cross_entropy(logits, target, weight=loss.weights, reduction="sum") / 9
    torch.testing.assert_close(loss(logits, target), theirs)


@given(st.integers(0, 1000), st.integers(2, 6))
@settings(max_examples=30)
def test_no_margin_and_no_focus_are_cross_entropy(seed: int, classes: int) -> None:
    logits, target = batch(9, classes, seed)
    counts = torch.arange(classes) + 1
    expected = cross_entropy(logits, target)
    torch.testing.assert_close(LDAM(counts, margin=0.0)(logits, target), expected)
    plain = Asymmetric(counts, gamma_negative=0.0, gamma_positive=0.0, margin=0.0)
    torch.testing.assert_close(plain(logits, target), expected)


@given(st.integers(0, 1000), st.sampled_from([0.1, 0.5, 2.0]), st.sampled_from([1.0, 30.0]))
@settings(max_examples=30)
def test_ldam_is_the_paper_s_formula(seed: int, margin: float, scale: float) -> None:
    """Equations 12 and 13, a row at a time, in NumPy."""
    logits, target = batch(9, 3, seed)
    roots = COUNTS.numpy() ** 0.25
    margins = margin * roots.min() / roots
    rows = []
    for z, y in zip(logits.double().numpy(), target.numpy(), strict=True):
        own = np.exp(scale * (z[y] - margins[y]) - scale * z.max())
        others = np.exp(scale * np.delete(z, y) - scale * z.max()).sum()
        rows.append(np.log(own + others) - scale * (z[y] - margins[y]) + scale * z.max())
    ours = LDAM(COUNTS, margin=margin, scale=scale)(logits, target)
    assert float(ours) == pytest.approx(np.mean(rows), rel=1e-5, abs=1e-6)


@given(
    st.integers(0, 1000),
    st.sampled_from([0.0, 1.0, 4.0]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([0.0, 0.05, 0.3]),
)
@settings(max_examples=40)
def test_asymmetric_of_two_classes_is_timm_s(
    seed: int, negative: float, positive: float, margin: float
) -> None:
    logits, target = batch(9, 2, seed)
    # Theirs takes 1 - sigmoid, which cancels in 32 bits, and cuts probabilities below 1e-8.
    logits = logits.double().clamp(-9, 9).requires_grad_()
    theirs = AsymmetricLossMultiLabel(
        gamma_neg=negative, gamma_pos=positive, clip=margin, disable_torch_grad_focal_loss=False
    )(logits[:, 1:] - logits[:, :1], target[:, None].float())
    ours = Asymmetric(BINARY, negative, positive, margin)(logits, target)
    rows = 1 if TIMM_AVERAGES else len(target)
    torch.testing.assert_close(ours, theirs / rows, rtol=1e-4, atol=1e-6, check_dtype=False)
    slopes = [torch.autograd.grad(each, logits)[0] for each in (ours, theirs / rows)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)


def test_label_smoothing_mixes_with_the_mean_over_classes() -> None:
    logits, target = batch(9, 3)
    uniform = -logits.log_softmax(dim=1).mean()
    expected = 0.8 * cross_entropy(logits, target) + 0.2 * uniform
    smoothed = LabelSmoothing(COUNTS, smoothing=0.2)(logits, target)
    torch.testing.assert_close(smoothed, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelSmoothing(BINARY, smoothing=1.5), "smoothing=1.5: must be between"),
        (lambda: WeightedCrossEntropy(BINARY, power=-1.0), "power=-1.0: must be between 0 and 2"),
        (lambda: Focal(BINARY, gamma=-1.0), "gamma=-1.0: must be between 0 and 10"),
        (lambda: Focal(BINARY, gamma=float("nan")), "gamma=nan"),
        (lambda: LDAM(BINARY, margin=-1.0), "margin=-1.0: must be between 0 and 10"),
        (lambda: LDAM(BINARY, scale=0.0), "scale=0: must be above 0"),
        (lambda: Asymmetric(BINARY, gamma_negative=11.0), "gamma_negative=11.0: must be between"),
        (lambda: Asymmetric(BINARY, gamma_positive=-1.0), "gamma_positive=-1.0: must be between"),
        (lambda: Asymmetric(BINARY, margin=1.5), "margin=1.5: must be between 0 and 1"),
        (lambda: Focal(BINARY, alpha=1.0), "contains 0 or less"),
        (lambda: Focal(COUNTS, alpha=0.25), "for two classes; give a list of 3 weights"),
        (lambda: Focal(COUNTS, alpha=[0.5, 0.5]), "has 2 weights; give a list of 3 weights"),
        (lambda: Focal(BINARY, alpha=[-1.0, 1.0]), "all must be above 0"),
    ],
)
def test_arguments_out_of_bounds_are_refused(make: Callable[[], Loss], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("name", CASES)
def test_the_mean_of_corrected_probabilities_is_the_prevalence(name: str) -> None:
    """For the probabilities that minimise the expected loss of lesions of known risk."""
    before, prior_alone, corrected = correct(CASES[name])
    assert corrected == pytest.approx(1, abs=0.005)
    if not name.startswith(("cross_entropy", "weighted_cross_entropy")):
        assert abs(prior_alone - 1) > 0.05
    if name == "focal 2, weighted .5 (siim_isic_b3)":
        assert (before, prior_alone) == pytest.approx((14.6, 2.69), abs=0.1)


def test_balancing_patients_is_no_shift_of_classes_alone() -> None:
    assert weigh_patients() > 1.5
    assert weigh_patients(images=(7, 7)) == pytest.approx(1)


@pytest.mark.parametrize("make", [m for m in CHOICES if m(COUNTS).inverse is not None])
def test_the_inverse_of_a_loss_returns_the_shares_of_three_classes(
    make: Callable[[Tensor], Loss],
) -> None:
    loss = make(COUNTS)
    # With a margin, shares of the most frequent class below 4 % have the same minimum.
    for shares in np.random.default_rng(0).dirichlet([4, 3, 2], 5):
        weighted = shares * loss.weights.double().numpy()

        def expected(z: np.ndarray, shares: np.ndarray = shares) -> tuple[float, np.ndarray]:
            logits = torch.tensor(z[None], dtype=torch.float64, requires_grad=True)
            rows = [loss(logits, torch.tensor([target])) for target in range(3)]
            value = (torch.stack(rows) * torch.from_numpy(shares)).sum()
            (slope,) = torch.autograd.grad(value, logits)
            return float(value.detach()), slope.numpy()[0]

        z = minimize(expected, np.zeros(3), jac=True, options={"gtol": 1e-9}).x
        inverted = invert_loss(softmax(z)[None], loss.inverse or {})[0]
        np.testing.assert_allclose(inverted, weighted / weighted.sum(), atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        LabelSmoothing(BINARY, smoothing=1.0),
        Asymmetric(BINARY, gamma_negative=0.0),
        Asymmetric(BINARY, margin=1.0),
    ],
)
def test_a_loss_that_several_risks_minimise_alike_has_no_inverse(loss: Loss) -> None:
    assert loss.inverse is None
    low, high = minimise(loss, np.array([0.01, 0.012]))[:, 1]
    assert low == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize("loss", [LabelSmoothing(BINARY), Asymmetric(BINARY), Focal(BINARY)])
def test_an_inverse_changes_no_order(loss: Loss) -> None:
    """Also where a network is surer than the loss allows."""
    p = np.r_[0, 1e-20, 1e-9, np.linspace(1e-4, 1 - 1e-4, 5000), 1 - 1e-9]
    inverted = invert_loss(np.column_stack([1 - p, p]), loss.inverse or {})
    assert np.isfinite(inverted).all()
    assert (np.diff(inverted[:, 1]) > 0).all()
    np.testing.assert_allclose(inverted.sum(axis=1), 1)
