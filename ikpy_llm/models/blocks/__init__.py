"""What the architectures share: each function takes the graph and the hyperparameters and leaves ops."""

from ikpy_llm.models.blocks.dense import ffn
from ikpy_llm.models.blocks.ends import embed, head
from ikpy_llm.models.blocks.experts import moe
from ikpy_llm.models.blocks.gqa import attention
from ikpy_llm.models.blocks.mla import latent_attention
from ikpy_llm.models.blocks.rotation import angles, attn_factor

__all__ = ["angles", "attention", "attn_factor", "embed", "ffn", "head", "latent_attention", "moe"]
