"""Models by name: timm's, torchvision's, transformers', Sparse Update's, a folder's, or the demo's."""

from adabet.models.config import DataConfig
from adabet.models.heads import new_head
from adabet.models.loading import LoadedModel, load_model

__all__ = ["DataConfig", "LoadedModel", "load_model", "new_head"]
