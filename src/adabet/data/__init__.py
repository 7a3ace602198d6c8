"""Datasets by name, folders of images and of sound, and the transforms that models expect."""

from adabet.data.audio import AudioDataset, AudioTransform, audio_transforms, read_sound
from adabet.data.audio_loading import load_audio
from adabet.data.images import ImageDataset, Sample
from adabet.data.loading import load_data
from adabet.data.published import PUBLISHED, PublishedDataset
from adabet.data.sampling import EpochSampler
from adabet.data.splits import DataReport, DataSplits, LeftOut, Loaders
from adabet.data.transforms import ImageTransform, transforms
from adabet.data.unlabelled import unlabelled_batches

__all__ = [
    "PUBLISHED",
    "AudioDataset",
    "AudioTransform",
    "DataReport",
    "DataSplits",
    "EpochSampler",
    "ImageDataset",
    "ImageTransform",
    "LeftOut",
    "Loaders",
    "PublishedDataset",
    "Sample",
    "audio_transforms",
    "load_audio",
    "load_data",
    "read_sound",
    "transforms",
    "unlabelled_batches",
]
