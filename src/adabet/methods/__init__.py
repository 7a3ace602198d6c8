"""Who chooses: the methods, each behind the same door."""

from adabet.methods import (
    adabet,
    auto_freeze,
    auto_rgn,
    baselines,
    bn_bias,
    elastic_trainer,
    fisher,
    gradual_unfreeze,
    lisa,
    lora,
    lp_ft,
    medyate,
    prune_train,
    sparse_update,
    tinytrain,
    trady,
    velocity,
)
from adabet.methods.channel_gradients import layer_importance
from adabet.methods.dynamic import Dynamic, Moment, Turn
from adabet.methods.layer_choice import LayerImportance
from adabet.methods.registry import METHODS, Method, Request, find_method, rank, register, select, start
from adabet.methods.tensors import choose_tensors

__all__ = [
    "METHODS",
    "Dynamic",
    "LayerImportance",
    "Method",
    "Moment",
    "Request",
    "Turn",
    "adabet",
    "auto_freeze",
    "auto_rgn",
    "baselines",
    "bn_bias",
    "choose_tensors",
    "elastic_trainer",
    "find_method",
    "fisher",
    "gradual_unfreeze",
    "layer_importance",
    "lisa",
    "lora",
    "lp_ft",
    "medyate",
    "prune_train",
    "rank",
    "register",
    "select",
    "sparse_update",
    "start",
    "tinytrain",
    "trady",
    "velocity",
]
