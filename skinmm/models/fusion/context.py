"""A lesion among the other lesions of its patient."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from skinmm.errors import InputError


class PatientContext(nn.Module):
    """What a patient's other lesions add to a lesion's plain logits ("ugly duckling").

    A block of multi-head attention as in the set transformer (Lee et al. 2019, arXiv:1810.00825):
    the lesion asks, the others answer with how they differ from it. A mean over the others, so
    neither their order nor their number counts (how many images a patient has is no sign of
    disease). It starts as the plain model, and stays it for a lesion without others.
    """

    def __init__(  # noqa: PLR0913  (two are of the features, two of the first stage)
        self,
        dim: int,
        classes: int,
        *,
        base: str | None = None,  # noqa: ARG002
        plain: dict[str, Any] | None = None,  # noqa: ARG002
        width: int = 64,
        heads: int = 4,
        others: int = 32,
        dropout: float = 0.3,
    ) -> None:
        """Takes the shape of the attention.

        Args:
            dim: of the plain model's fused features.
            classes: number of logits.
            base: run folder of the plain model; None: it is trained first, in `plain` of the run.
            plain: its fusion block, where it is trained here.
            width: of queries, keys and values.
            heads: they share the width evenly.
            others: lesions that one is compared with at most; of more, always the same are taken.
            dropout: on what the others say.

        Raises:
            InputError: a width that the heads do not divide, or nobody to compare with.
        """
        super().__init__()
        if heads < 1 or width % heads or others < 1:
            raise InputError(
                f"fusion patient_context: {width=} is not divided by {heads=}, or {others=} is none"
            )
        self.others = others
        self.project = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        self.relate = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        last = nn.Linear(width, classes, bias=False)
        nn.init.zeros_(last.weight)
        self.shift = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), last)

    def forward(
        self,
        plain: Float[Tensor, "b classes"],
        own: Float[Tensor, "b dim"],
        others: Float[Tensor, "b s dim"],
        there: Bool[Tensor, "b s"],
    ) -> Float[Tensor, "b classes"]:
        """Logits of lesions, from fused features.

        Args:
            plain: their logits when each is seen alone.
            own: their features.
            others: those of other lesions of their patient.
            there: which of these there are.
        """
        return self.judge(plain, self.project(own), self.project(others), there)

    def judge(
        self,
        plain: Float[Tensor, "b classes"],
        own: Float[Tensor, "b width"],
        others: Float[Tensor, "b s width"],
        there: Bool[Tensor, "b s"],
    ) -> Float[Tensor, "b classes"]:
        """The same from features that were projected."""
        known = there.any(dim=1, keepdim=True)
        # Attention to nobody is not a number, whose gradient would be none either.
        hidden = ~(there | ~known)
        differences = self.relate(others - own[:, None])
        said, _ = self.attention(
            own[:, None], others, differences, key_padding_mask=hidden, need_weights=False
        )
        return torch.where(known, plain + self.shift(said[:, 0]), plain)
