"""Image encoder: a network of timm, or the package's own baseline, with its pixel normalisation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from skinmm.config import ModelConfig, Registry
from skinmm.errors import InputError
from skinmm.models.pretrained import find_weights, load_weights
from skinmm.models.sources import OPEN_CLIP, OpenClipImage, find_source
from skinmm.models.tuning import add_adapters, list_trained, remove_adapters

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
MAP_NDIM: Final = 4  # (batch, channels, height, width)
LOADING: Final = ("pretrained", "checkpoint_path", "cache_dir")
"""Starts of the arguments by which timm reads a file or opens an address."""


class SimpleCNN(nn.Sequential):
    """Small baseline without pretrained weights: convolutions, pooling, dropout, dense layer.

    Args:
        widths: channels of each block; every block halves height and width.
        dense: width of the last layer, the feature vector.
        drop_rate: dropout before the last layer.
    """

    def __init__(
        self, widths: Sequence[int] = (32, 64, 128), dense: int = 128, drop_rate: float = 0.3
    ) -> None:
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            convolution = nn.Conv2d(before, after, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(drop_rate)]
        layers += [nn.Linear(16 * widths[-1], dense), nn.ReLU()]
        super().__init__(*layers)
        self.num_features = widths[-1]
        self.head_hidden_size = dense

    def reset_classifier(self, num_classes: int, global_pool: str) -> None:  # noqa: ARG002
        """Remove the pooling, as networks of timm do with `global_pool=""`."""
        del self[-5:]
        self.head_hidden_size = self.num_features


CUSTOM: Final[Registry[Callable[..., nn.Module]]] = Registry(
    "model", simple_cnn=SimpleCNN, **{OPEN_CLIP: OpenClipImage}
)
"""Networks of this package; every other name is one of timm's."""


def _remove_adapters(backbone: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    remove_adapters(backbone.get_submodule("net"), state, prefix)


def synchronise_batchnorm(network: nn.Module) -> None:
    """Make every BatchNorm of a network use the rows of all processes, in place."""
    # torch's conversion would drop the activations inside timm's layers.
    from timm.layers.norm_act import convert_sync_batchnorm

    convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]


class Backbone(nn.Module):
    """Image encoder: uint8 RGB (batch, 3, height, width) -> features (batch, *tokens, dim).

    Normalisation is part of the encoder, so that training, export and serving cannot differ.

    Args:
        config: name, image size and arguments of the network.
        pretrained: load weights as `config.pretrained` states; False if a checkpoint is loaded
            afterwards.
        tokens: return a vector for each position of the last feature map, or each transformer
            token, instead of one for each image.

    Attributes:
        config: configuration with the name and arguments of the architecture, which need no hub.
        origin: description of the weights that the network started from.
        dim: width of a feature vector.
        frozen: whether weights and BatchNorm statistics stay constant.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: ModelConfig, *, pretrained: bool = False, tokens: bool = False
    ) -> None:
        super().__init__()
        self.config, self.origin, self.net, normalisation = _build(config, pretrained=pretrained)
        for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            value = torch.tensor(normalisation.get(key) or default) * 255
            self.register_buffer(key, value.view(1, 3, 1, 1))
        if tokens:
            self.net.reset_classifier(0, "")
        # VGG and MobileNetV3 end in a hidden layer that is wider than their feature map.
        self.dim = int(getattr(self.net, "head_hidden_size", None) or self.net.num_features)
        if config.trained == "lora" and pretrained:
            add_adapters(self.net, config.lora_rank, config.image_size)
            self.register_load_state_dict_pre_hook(_remove_adapters)  # type: ignore[no-untyped-call]
        self._tune = config.trained
        self._trained = {f"net.{name}" for name in list_trained(self.net, config.trained)}
        self.frozen = config.trained != "head"
        self.freeze(not self.frozen)

    def forward(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b *places dim"]:
        """Encode a batch of uint8 RGB images."""
        normalised = (image.to(self.mean.dtype) - self.mean) / self.std
        features: Tensor = self.net(normalised)
        if features.ndim != MAP_NDIM:  # (batch, dim), or (batch, tokens, dim) of a transformer
            return features
        channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)

    def freeze(self, frozen: bool) -> None:
        """Freeze weights and BatchNorm statistics, or unfreeze the part trained by `model.tune`."""
        if frozen != self.frozen:
            self.frozen = frozen
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(not frozen and name in self._trained)
            self.train(not frozen)

    def layer_depths(self) -> dict[str, int]:
        """Return the number of layers between each parameter and the features, by name."""
        matcher = getattr(self.net, "group_matcher", None)
        if matcher is None:  # not of timm: every module with parameters is a layer
            modules = [layer for layer in self.net.modules() if [*layer.parameters(recurse=False)]]
            numbers = {id(p): i for i, layer in enumerate(modules) for p in layer.parameters()}
            layers = {name: numbers[id(p)] for name, p in self.net.named_parameters()}
        else:
            from timm.models import group_parameters

            groups = group_parameters(self.net, matcher(coarse=False), return_values=False)
            layers = {name: int(layer) for layer, names in groups.items() for name in names}
        last = max(layers.values())
        return {f"net.{name}": last - layer for name, layer in layers.items()}

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode; frozen networks, and BatchNorm with adapters, stay in evaluation mode."""
        super().train(mode and not self.frozen)
        for module in self.net.modules() if self._tune == "lora" else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def _build(
    config: ModelConfig, *, pretrained: bool
) -> tuple[ModelConfig, str, Any, Mapping[str, Any]]:
    """Return the resolved configuration, the origin of the weights, the network and its settings.

    The settings are `mean` and `std` of the pixels that the weights were trained on.
    """
    source = find_source(config.name, CUSTOM)
    resolved = replace(config, name=source.name, args={**source.args, **config.args})
    args, head = dict(resolved.args), {}
    # A checkpoint, or the config.json of a repository, may be that of another person.
    if loading := next((key for key in args if key.startswith(LOADING)), None):
        raise InputError(
            f"model.args of {config.name}: {loading} is no argument of a network; model.pretrained "
            "chooses its weights"
        )
    side = args.get("vision_cfg", {}).get("image_size", config.image_size)  # open_clip's is fixed
    if side != config.image_size:
        raise InputError(f"model.image_size={config.image_size}: {config.name} needs {side}")
    if source.name in CUSTOM:
        create: Callable[..., nn.Module] = CUSTOM[source.name]
    else:
        import timm

        create, head = partial(timm.create_model, source.name), {"num_classes": 0}
        if source.settings.get("fixed_input_size"):
            args.setdefault("img_size", config.image_size)
    net = _create(config, partial(create, **args, **head))
    origin = "from scratch"
    has_weights = source.name not in CUSTOM or source.name == OPEN_CLIP
    if not has_weights and str(config.pretrained).lower() not in ("auto", "false"):
        raise InputError(
            f"model.name={config.name} has no pretrained weights; set model.pretrained=false"
        )
    if pretrained and has_weights:
        build = partial(create, **args)
        weights = find_weights(config.name, source.location, config.pretrained, build, source.files)
        origin = weights.origin
        if weights.state is not None:
            names = build().state_dict().keys() - net.state_dict().keys() if head else ()
            refusal = f"model.pretrained={config.pretrained} does not fit {config.name}"
            origin += load_weights(net, weights.state, names, refusal)
    return resolved, origin, net, source.settings


def _create(config: ModelConfig, create: Callable[[], nn.Module]) -> nn.Module:
    """Create the network without weights, and check that it accepts the image size."""
    try:
        net = create()
    except (TypeError, ValueError, RuntimeError, AssertionError, LookupError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"model.args of {config.name}: {reason}") from error
    patches: Any = getattr(net, "patch_embed", None)
    patch = (getattr(patches, "patch_size", None) or (1,))[0]
    if config.image_size % patch and not getattr(patches, "dynamic_img_pad", False):
        raise InputError(
            f"model.image_size={config.image_size}: {config.name} needs a multiple of {patch}"
        )
    return net
