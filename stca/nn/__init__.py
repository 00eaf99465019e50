"""Drop-in modules: the layers of STCA, and the head that its paper puts on top."""

from stca.nn.attention import Keep, TargetAttention
from stca.nn.ffn import SwiGLUFFN
from stca.nn.layer import STCALayer
from stca.nn.rank_mixer import RankMixer
from stca.nn.stack import STCA

__all__ = ["STCA", "Keep", "RankMixer", "STCALayer", "SwiGLUFFN", "TargetAttention"]
