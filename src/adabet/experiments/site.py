"""Where cells run: a model and prepared data, from which every run starts afresh."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from adabet.data import DataSplits, load_data, transforms
from adabet.errors import ModelError
from adabet.experiments.specs import DataSpec, ModelSpec
from adabet.models import LoadedModel, load_model, new_head


@dataclass(frozen=True)
class Site:
    """A model and the data that it is adapted to.

    Attributes:
        loaded: the model with its base weights.
        splits: the data, the same for all seeds.
        device: where runs compute.
    """

    loaded: LoadedModel = field(repr=False)
    splits: DataSplits
    device: torch.device

    @classmethod
    def of(cls, model: ModelSpec, data: DataSpec) -> "Site":
        """Load a model and data.

        Raises:
            ModelError: if the model reads no images.
        """
        loaded = load_model(
            model.name,
            weights=model.weights,
            pretrained=model.pretrained,
            image_size=model.image_size,
            mean=model.mean,
            std=model.std,
            **model.arguments,
        )
        if loaded.data_config is None:
            raise ModelError(f"{loaded.name} reads no images; image models can be compared")
        splits = load_data(
            data.name,
            transform_train=transforms(loaded.data_config, train=True),
            transform_eval=transforms(loaded.data_config, train=False),
            max_train=data.max_train,
            max_val=data.max_val,
            max_test=data.max_test,
        )
        return cls(loaded, splits, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def model(self, seed: int) -> nn.Module:
        """A copy of the model with a fresh head, which the seed draws."""
        torch.manual_seed(seed)
        model = copy.deepcopy(self.loaded.model)
        new_head(model, len(self.splits.classes))
        return model.to(self.device)

    def batch(self, batch_size: int, seed: int) -> Any:
        """The first batch of a run with this seed."""
        return next(iter(self.splits.loaders(batch_size=batch_size, seed=seed).train))


class Sites:
    """The last model and data stay loaded: cells of one table come one after the other."""

    def __init__(self) -> None:
        self._site: Site | None = None
        self._of: tuple[ModelSpec, DataSpec] | None = None

    def find(self, model: ModelSpec, data: DataSpec) -> Site:
        """The site of a model and data; the former one is dropped first."""
        if self._site is None or self._of != (model, data):
            self._site = None
            self._site, self._of = Site.of(model, data), (model, data)
        return self._site
