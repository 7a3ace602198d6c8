"""Architecture knowledge as data: how attention blocks, norms and classifiers are called.

Attention is recognised by its projections, whatever library wrote it; the tables below name them. A module
that none of the tables knows is an ordinary container, and each of its children a layer.
"""

import re

QUERY_KEY_VALUE_FUSED = frozenset(
    {"qkv", "qkv_proj", "in_proj", "c_attn", "query_key_value", "wqkv", "attn_qkv", "qkv_lin"}
)
"""Names of one projection that makes queries, keys and values together."""

QUERY = frozenset({"q", "query", "q_proj", "q_lin", "to_q", "wq", "query_proj", "linear_q"})
KEY = frozenset({"k", "key", "k_proj", "k_lin", "to_k", "wk", "key_proj", "linear_k", "kv", "to_kv", "kv_proj"})
"""Names of separate projections; a query beside a key (or a key and value together) is attention."""

ATTENTION_PARENT = re.compile(r"(attention|attn)(v\d)?$", re.IGNORECASE)
"""A parent whose class is so named, and that adds only an output projection, belongs to the block."""

FUSED_PARAMETERS = frozenset({"in_proj_weight", "q_proj_weight"})
"""Parameters (not modules) that project, as in `torch.nn.MultiheadAttention`."""

NORM_CLASS = re.compile(r"norm", re.IGNORECASE)
"""Class names of normalization layers that do not derive from torch's."""

CHANNELS_SECOND_CLASS = re.compile(r"[123]d$")
"""Class names of layers that keep an image's channels behind the samples, such as timm's `LayerNorm2d`."""

HEAD_NAMES = (
    "head.fc",
    "heads.head",
    "classifier",
    "head",
    "fc",
    "score",
    "qa_outputs",
    "lm_head",
    "head_dist",
    "last_linear",
    "output_layer",
)
"""Where classifiers are found, tried in this order after the model's own `get_classifier`."""
