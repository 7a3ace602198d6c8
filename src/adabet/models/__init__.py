"""Models by name: timm's, torchvision's, transformers', Sparse Update's, nets for sound, a folder's, or the demo's."""

from adabet.models.audio import AudioCnn, AudioConfig
from adabet.models.config import DataConfig
from adabet.models.heads import new_head
from adabet.models.loading import LoadedModel, load_model

__all__ = ["AudioCnn", "AudioConfig", "DataConfig", "LoadedModel", "load_model", "new_head"]
