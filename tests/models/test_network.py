"""The network: every combination of branches, its views, its precision, and what it refuses."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from micro_runs import micro_config, with_model
from torch import Tensor
from torch.nn.functional import cross_entropy

from skinmm.config import Component
from skinmm.errors import InputError
from skinmm.models.fusion import FUSIONS
from skinmm.models.network import Network, build_network, iterate_symmetries
from skinmm.models.tabular import TABULAR

WIDTHS = [2, 3, 4]
IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
RECORDS = torch.randn(4, sum(WIDTHS))


def log_probabilities(built: Network, *inputs: Tensor | None, symmetries: int = 1) -> Tensor:
    image, record = inputs
    return built.predict(image, record, symmetries)[0]


def network(
    fusion: str = "concat", tabular: str = "mlp", model: str = "test_efficientnet"
) -> Network:
    torch.manual_seed(0)
    config = with_model(micro_config(fusion), name=model)
    config = replace(config, tabular=Component(tabular))
    return build_network(config, WIDTHS, classes=3, pretrained=False)


@pytest.mark.parametrize(
    ("fusion", "tabular", "model"),
    [*product(FUSIONS, TABULAR, ["test_efficientnet", "test_vit", "simple_cnn"])],
)
def test_every_combination_takes_a_step(fusion: str, tabular: str, model: str) -> None:
    built = network(fusion, tabular, model)
    logits = built(IMAGES, RECORDS)
    assert logits.shape == (4, 3)
    assert built.embed(IMAGES, RECORDS).shape == (4, built.fusion.dim)
    loss = cross_entropy(logits, torch.tensor([0, 1, 2, 0]))
    torch.autograd.backward(loss)
    assert all(parameter.grad is not None for parameter in built.parameters())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_branch_that_is_not_used_is_not_built(fusion: str) -> None:
    built = network(fusion)
    built_branches = {name for name in ("image", "record") if getattr(built, name) is not None}
    assert built_branches == FUSIONS[fusion].inputs


@pytest.mark.parametrize(
    ("image", "record", "lacking"),
    [(None, RECORDS, "an image"), (IMAGES, None, "a record")],
)
def test_a_network_says_what_it_lacks(
    image: Tensor | None, record: Tensor | None, lacking: str
) -> None:
    with pytest.raises(InputError, match=f"this model needs {lacking}"):
        network()(image, record)


SHOWN = torch.tensor([True, False, True, False])


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if "image" in FUSIONS[name].inputs])
def test_learned_features_stand_in_for_an_absent_image(fusion: str) -> None:
    torch.manual_seed(0)
    config = with_model(micro_config(fusion), drop_image=0.5)
    built = build_network(config, WIDTHS, classes=3, pretrained=False)
    built(IMAGES, RECORDS, SHOWN).sum().backward()
    assert built.absent is not None
    assert built.absent.grad is not None
    assert built.absent.grad.any()
    built.eval()
    together, other = built(IMAGES, RECORDS, SHOWN), built(255 - IMAGES, RECORDS, SHOWN)
    torch.testing.assert_close(together[~SHOWN], other[~SHOWN])
    assert not torch.allclose(together[SHOWN], other[SHOWN])
    torch.testing.assert_close(together[SHOWN], built(IMAGES, RECORDS)[SHOWN])
    written = built.predict(IMAGES, RECORDS, symmetries=2, has_image=SHOWN)[0]
    torch.testing.assert_close(written[~SHOWN], together[~SHOWN].log_softmax(dim=1))


def test_a_network_that_never_lacked_an_image_refuses_to() -> None:
    with pytest.raises(InputError, match=r"it was trained with model\.drop_image=0"):
        network()(IMAGES, RECORDS, SHOWN)


@pytest.mark.parametrize("fusion", ["concat", "cross_attention"])
def test_features_pass_the_image_network_by(fusion: str) -> None:
    built = network(fusion, model="test_vit").eval()
    features = built.encode_image(IMAGES)
    torch.testing.assert_close(built(features, RECORDS), built(IMAGES, RECORDS))
    outcome = log_probabilities(built, features, RECORDS, symmetries=8)
    torch.testing.assert_close(outcome, log_probabilities(built, IMAGES, RECORDS))


def test_an_unknown_block_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="unknown fusion 'glue'; choose from image_only"):
        network("glue")
    with pytest.raises(InputError, match="unknown tabular 'forest'; choose from mlp"):
        network(tabular="forest")


def test_a_picture_has_eight_views_and_each_of_them_the_same_eight() -> None:
    views = list(iterate_symmetries(IMAGES))
    assert torch.equal(views[0], IMAGES)
    orbit = {view.numpy().tobytes() for view in views}
    assert len(orbit) == 8
    for view in views:
        assert {again.numpy().tobytes() for again in iterate_symmetries(view)} == orbit


def test_one_view_is_the_network_itself() -> None:
    built = network().eval()
    expected = built(IMAGES, RECORDS).log_softmax(dim=1)
    torch.testing.assert_close(log_probabilities(built, IMAGES, RECORDS), expected)


def test_several_views_average_probabilities() -> None:
    built = network().eval()
    shown = [built(view, RECORDS).softmax(dim=1) for view in iterate_symmetries(IMAGES)][:3]
    averaged = log_probabilities(built, IMAGES, RECORDS, symmetries=3).exp()
    torch.testing.assert_close(averaged, torch.stack(shown).mean(dim=0))
    alone = network("tabular_only").eval()
    assert torch.equal(
        log_probabilities(alone, None, RECORDS, symmetries=8),
        log_probabilities(alone, None, RECORDS),
    )


def test_many_masks_average_to_the_head_of_the_features_and_only_in_training() -> None:
    config = micro_config("tabular_only")
    config = with_model(config, head_dropout=0.5, head_masks=4)
    built = build_network(config, WIDTHS, classes=3, pretrained=False)
    built.record.eval()  # type: ignore[union-attr]  # its own dropout is not looked at
    expected = built.head(built.embed(None, RECORDS))
    torch.manual_seed(0)
    draws = torch.stack([built(None, RECORDS) for _ in range(2000)])
    torch.testing.assert_close(draws.mean(dim=0), expected, atol=0.05, rtol=0)
    fused = built.embed(None, RECORDS)
    weight = built.head.get_parameter("weight")
    # A linear head's variance under dropout of half the features, over four masks.
    variance = (fused[:, None, :] * weight).square().sum(dim=2) / 4
    torch.testing.assert_close(draws.var(dim=0), variance, atol=0.01, rtol=0.15)
    built.eval()
    assert torch.equal(built(None, RECORDS), expected)


def test_all_eight_views_make_the_pose_of_a_picture_irrelevant() -> None:
    built = network().eval()
    upright = log_probabilities(built, IMAGES, RECORDS, symmetries=8)
    turned = log_probabilities(built, IMAGES.flip(-1).transpose(-1, -2), RECORDS, symmetries=8)
    torch.testing.assert_close(turned, upright)


def test_a_certain_network_has_finite_logarithms() -> None:
    built = network().eval()
    with torch.no_grad():
        built.head.get_parameter("weight").mul_(1e4)
    logarithms = log_probabilities(built, IMAGES, RECORDS, symmetries=8)
    assert logarithms.min() < -200
    assert logarithms.isfinite().all()


def test_written_probabilities_are_32_bit_inside_any_autocast() -> None:
    """Sixteen bits move a probability by a hundredth, the GPU's TF32 by a thousandth."""
    built = network().eval()
    expected = log_probabilities(built, IMAGES, RECORDS)
    allowed: list[bool] = []
    built.head.register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert built(IMAGES, RECORDS).dtype == torch.bfloat16
        logarithms = log_probabilities(built, IMAGES, RECORDS)
    assert logarithms.dtype == torch.float32
    assert torch.equal(logarithms, expected)
    assert allowed[-1] is False
    assert torch.backends.cudnn.allow_tf32 is before
