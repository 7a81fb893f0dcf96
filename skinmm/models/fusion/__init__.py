"""How image and record become one vector: every block, by the name that `fusion=` chooses."""

from typing import Final

from skinmm.models.fusion.attention import CrossAttention
from skinmm.models.fusion.bilinear import Bilinear
from skinmm.models.fusion.contract import Fusion
from skinmm.models.fusion.gating import FiLM, Gated, MetaBlock, MetaNet
from skinmm.models.fusion.joint import Concat, Late
from skinmm.models.fusion.single import ImageOnly, TabularOnly

__all__ = ["FUSIONS", "Fusion"]

FUSIONS: Final[dict[str, type[Fusion]]] = {
    "image_only": ImageOnly,
    "tabular_only": TabularOnly,
    "concat": Concat,
    "late": Late,
    "gated": Gated,
    "film": FiLM,
    "metanet": MetaNet,
    "metablock": MetaBlock,
    "cross_attention": CrossAttention,
    "bilinear": Bilinear,
}
