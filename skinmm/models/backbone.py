"""The image branch: uint8 RGB in, a feature vector an image out, or one for each of its places."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from skinmm.config import ModelConfig
from skinmm.errors import InputError
from skinmm.models.pretrained import Weights, find_weights

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
MAP_NDIM: Final = 4


class SimpleCNN(nn.Sequential):
    """The from-scratch baseline of student projects: convolution, pooling, dropout, dense."""

    def __init__(
        self, widths: Sequence[int] = (32, 64, 128), dense: int = 128, drop_rate: float = 0.3
    ) -> None:
        """Builds the layers.

        Args:
            widths: channels of each block; every block halves the picture.
            dense: width of the last layer, the feature vector.
            drop_rate: dropout before it.
        """
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(drop_rate)]
        layers += [nn.Linear(16 * widths[-1], dense), nn.ReLU()]
        super().__init__(*layers)
        self.num_features = widths[-1]
        self.head_hidden_size = dense

    def reset_classifier(self, num_classes: int, global_pool: str) -> None:  # noqa: ARG002
        """Ends in the last block's map: what timm's networks do at `global_pool=""`."""
        del self[-5:]
        self.head_hidden_size = self.num_features


# Networks of our own; every other name is timm's.
OWN: Final[dict[str, Callable[..., nn.Module]]] = {"simple_cnn": SimpleCNN}


def synchronise_batchnorm(network: nn.Module) -> None:
    """Lets every BatchNorm below a network see the rows of all processes.

    torch's own conversion would lose the activations that timm's layers hold.
    """
    from timm.layers.norm_act import convert_sync_batchnorm

    convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]


class Backbone(nn.Module):
    """An encoder that owns its normalisation, so that training, export and serving cannot differ.

    Attributes:
        origin: what its weights are.
        dim: width of a feature vector.
        frozen: whether weights and BatchNorm statistics stay as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: ModelConfig, *, pretrained: bool = False, tokens: bool = False
    ) -> None:
        """Builds the network, and loads weights if they are wanted.

        Args:
            config: name, image size and arguments of the network.
            tokens: a vector for each place of the last map, or each token, instead of one an image.
            pretrained: look for weights as `config.pretrained` says; False builds the bare network,
                as when a checkpoint is about to be loaded into it.

        Raises:
            InputError: an unknown network or argument, a size it cannot take, or weights that do
                not fit.
        """
        super().__init__()
        self.origin, self.net = _network(config, pretrained=pretrained)
        normalisation = getattr(self.net, "pretrained_cfg", {})
        for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            value = torch.tensor(normalisation.get(key, default)) * 255
            self.register_buffer(key, value.view(1, 3, 1, 1))
        if tokens:
            self.net.reset_classifier(0, "")
        # VGG and MobileNetV3 end in a hidden layer that is wider than their feature map.
        self.dim = int(getattr(self.net, "head_hidden_size", None) or self.net.num_features)
        self.frozen = False
        self.freeze(config.freeze)

    def forward(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b *places dim"]:
        """Encodes a batch of uint8 RGB images."""
        normalised = (image.to(self.mean.dtype) - self.mean) / self.std
        features: Tensor = self.net(normalised)
        if features.ndim != MAP_NDIM:  # a vector an image, or a transformer's tokens
            return features
        channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)

    def freeze(self, frozen: bool) -> None:
        """Holds weights and BatchNorm statistics as they are, or lets them learn again."""
        if frozen != self.frozen:
            self.frozen = frozen
            self.requires_grad_(not frozen)
            self.train(not frozen)

    def layer_depths(self) -> dict[str, int]:
        """How many layers lie between each parameter, by its name, and the features."""
        matcher = getattr(self.net, "group_matcher", None)
        if matcher is None:  # ours: every module that holds parameters is a layer
            modules = [each for each in self.net.modules() if [*each.parameters(recurse=False)]]
            place = {id(own): i for i, each in enumerate(modules) for own in each.parameters()}
            layers = {name: place[id(own)] for name, own in self.net.named_parameters()}
        else:
            from timm.models import group_parameters

            found = group_parameters(self.net, matcher(coarse=False), return_values=False)
            layers = {name: int(layer) for layer, names in found.items() for name in names}
        last = max(layers.values())
        return {f"net.{name}": last - layer for name, layer in layers.items()}

    def train(self, mode: bool = True) -> "Backbone":
        """Keeps a frozen network in evaluation mode: its BatchNorm statistics are frozen too."""
        return super().train(mode and not self.frozen)


def check_model_name(name: str) -> None:
    """Refuses what is neither ours nor timm's.

    Raises:
        InputError: an unknown network or tag, with the nearest names.
    """
    if name in OWN:
        return
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture.lower(), timm.list_models(), n=5, cutoff=0.4)
        choices = ", ".join([*OWN, *near])
        raise InputError(f"unknown model.name '{name}'; timm has no such model. Near: {choices}")
    if tag and name not in (tagged := timm.list_pretrained(f"{architecture}.*")):
        raise InputError(f"unknown weights model.name '{name}'; there are {', '.join(tagged)}")


def _network(config: ModelConfig, *, pretrained: bool) -> tuple[str, Any]:
    check_model_name(config.name)
    if config.name in OWN:
        return "from scratch", _own(config)
    import timm

    published = timm.get_pretrained_cfg(config.name)
    args = dict(config.args)
    if published and published.fixed_input_size:
        args.setdefault("img_size", config.image_size)
    create = partial(timm.create_model, config.name, **args)
    net = _bare(config, partial(create, num_classes=0))
    if not pretrained:
        return "from scratch", net
    hub_id = published.hf_hub_id if published else None
    weights = find_weights(config.name, hub_id, config.pretrained, create)
    if weights.file is None and weights.state is None:
        return weights.origin, net
    return weights.origin, _loaded(config, weights, create, net)


def _own(config: ModelConfig) -> nn.Module:
    if str(config.pretrained).lower() not in ("auto", "false"):
        raise InputError(
            f"model.name={config.name} has no pretrained weights; set model.pretrained=false"
        )
    return _bare(config, partial(OWN[config.name], **config.args))


def _bare(config: ModelConfig, create: Callable[[], nn.Module]) -> nn.Module:
    try:
        net = create()
    except (TypeError, ValueError, RuntimeError, AssertionError, LookupError) as error:
        raise InputError(f"model.args of {config.name}: {_line(error)}") from error
    patches: Any = getattr(net, "patch_embed", None)
    patch = (getattr(patches, "patch_size", None) or (1,))[0]
    if config.image_size % patch and not getattr(patches, "dynamic_img_pad", False):
        raise InputError(
            f"model.image_size={config.image_size}: {config.name} needs a multiple of {patch}"
        )
    return net


def _loaded(
    config: ModelConfig, weights: Weights, create: Callable[..., nn.Module], bare: nn.Module
) -> nn.Module:
    """The network with weights, through timm, which knows how to adapt them to its versions."""
    try:
        source: dict[str, Any] = {"file": weights.file}
        if weights.state is not None:
            head = create().state_dict().keys() - bare.state_dict().keys()
            state = {name: value for name, value in weights.state.items() if name not in head}
            # Said to be without a head, they are loaded strictly: left to itself timm passes over
            # every tensor that the file lacks, and a foreign file would leave a random network.
            source = {"state_dict": state, "num_classes": 0, "label_offset": 0}
        net: Any = create(num_classes=0, pretrained=True, pretrained_cfg_overlay=source)
    except Exception as error:  # of timm, of the adaption, of the readers of files
        raise InputError(
            f"model.pretrained={config.pretrained} does not fit {config.name}: {_line(error)}"
        ) from error
    for name in source:  # or every copy of the network would hold the weights twice
        net.pretrained_cfg.pop(name, None)
    return net


def _line(error: Exception) -> str:
    """An error's text in a line of readable length."""
    return " ".join(str(error).split())[:300]
