"""The paper's transformer (App. B.5, C.1): encoder and decoder of Vaswani et al. (2017), from torch's own layers.

Token numbers come in and logits go out; which words they stand for is told by `texts`. Only the feed-forward blocks
have ReLUs, one group of units a layer, channels on the last axis; attention is left as it is by `linearize`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Token numbers with a meaning of their own in every vocabulary: filling behind a sentence, a character that the
# vocabulary lacks, begin and end of a sentence.
PAD, UNKNOWN, BEGIN, END = range(4)
# How many tokens a sentence may have, begin or end included.
POSITIONS = 256
# Numbers a token come in multiples of this.
MULTIPLE = 16


class Transformer(nn.Module):
    """Source tokens [N, S] and target tokens [N, T], int64, to logits [N, T, classes] of the token after each target.

    Use `nets.build`, which checks its arguments. Rows end in `PAD`, where they are shorter than others: nothing attends
    to that in the source, and in the target only later positions would. At width 1 (the paper's): 512 numbers a token,
    8 heads, feed-forward blocks of 2,048 units, dropout 0.1, normalisation after each addition. Narrow ones (d < 128)
    have a head for every 16 numbers.

    * L layers each in encoder and decoder: 2 L unit groups, of 4 d units each with d = 512 × width.
    * parameters, d_ff = 4 d: encoder L (12 d² + 13 d), decoder L (16 d² + 19 d), embedding V d, last layer (d + 1) V.
      The paper's, V = 8,000: 52,338,496.
    * all-active NAPL: (1 - 2^-L) (1 + L / 2), for the walk meets a decoder's unit with probability 1/2 in each layer,
      then changes to the encoder with 1/2, where each layer bends it with 1/2. L = 6: 3.9375.

    Ours, where the paper is silent: one embedding for both languages, which have one vocabulary; a last layer of its
    own; sines for positions, as in Vaswani et al.; no normalisation behind the last layer. Initial values: matrices
    uniform after Glorot, biases 0, embedding normal with variance 1 / d.
    """

    def __init__(self, layers: int, dimension: int, *, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, dimension, padding_idx=PAD)
        self.dropout = nn.Dropout(dropout)
        # Batch on the second axis: only then does torch compute the same in evaluation as the recorded copy does.
        heads = min(8, dimension // MULTIPLE)
        shape = {"d_model": dimension, "nhead": heads, "dim_feedforward": 4 * dimension, "dropout": dropout}
        encoding, decoding = nn.TransformerEncoderLayer(**shape), nn.TransformerDecoderLayer(**shape)  # type: ignore[arg-type]
        self.encoder = nn.TransformerEncoder(encoding, layers, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoding, layers)
        self.last = nn.Linear(dimension, classes)
        self.scale = math.sqrt(dimension)
        self.positions: Tensor
        self.register_buffer("positions", sines(POSITIONS, dimension))
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and name != "embedding.weight":
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        nn.init.normal_(self.embedding.weight, std=dimension**-0.5)
        with torch.no_grad():
            self.embedding.weight[PAD] = 0

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits at every position of the target, each from the source and the target up to there."""
        padding = source == PAD
        places = torch.arange(target.shape[1], device=target.device)
        later = places[None, :] > places[:, None]
        memory = self.encoder(self._placed(source), src_key_padding_mask=padding)
        found = self.decoder(
            self._placed(target), memory, tgt_mask=later, tgt_is_causal=False, memory_key_padding_mask=padding
        )
        return self.last(found).transpose(0, 1)

    def _placed(self, tokens: Tensor) -> Tensor:
        """Embedded tokens [length, N, d], each with its place."""
        places = F.embedding(torch.arange(tokens.shape[1], device=tokens.device), self.positions)
        return self.dropout(self.embedding(tokens) * self.scale + places).transpose(0, 1)


def sines(positions: int, dimension: int) -> Tensor:
    """Sines (even columns) and cosines (odd ones) of wavelengths from 2π to 20,000π: float32 [positions, dimension]."""
    places = torch.arange(positions, dtype=torch.float64)[:, None]
    rates = torch.exp(-math.log(10_000) * torch.arange(0, dimension, 2, dtype=torch.float64) / dimension)
    return torch.stack([torch.sin(places * rates), torch.cos(places * rates)], dim=2).flatten(1).float()


@torch.no_grad()
def greedy(net: nn.Module, source: Tensor, limit: int) -> Tensor:
    """The translation that takes the likeliest token at each step, from source tokens [N, S] on the device of `net`.

    Args:
        net: a `Transformer`, linearized or not, in evaluation mode.
        source: int64, filled up with `PAD`.
        limit: of the number of tokens, end included; at most `POSITIONS`.

    Returns:
        int64 [N, up to limit]: tokens, `END` where the sentence ends, `PAD` behind it. A row without `END` met the
        limit.
    """
    found = torch.full((len(source), 1), BEGIN, dtype=torch.int64, device=source.device)
    going = torch.ones(len(source), dtype=torch.bool, device=source.device)
    while found.shape[1] <= min(limit, POSITIONS) and bool(going.any()):
        logits = net(source, found)[:, -1].float()
        logits[:, [PAD, BEGIN]] = -math.inf  # no word of any sentence
        found = torch.cat([found, torch.where(going, logits.argmax(1), PAD)[:, None]], dim=1)
        going = going & (found[:, -1] != END)
    return found[:, 1:]
