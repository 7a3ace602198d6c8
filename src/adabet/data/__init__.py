"""Datasets by name, image folders, and the transforms that models expect."""

from adabet.data.images import ImageDataset, Sample
from adabet.data.loading import load_data
from adabet.data.published import PUBLISHED, PublishedDataset
from adabet.data.sampling import EpochSampler
from adabet.data.splits import DataReport, DataSplits, LeftOut, Loaders
from adabet.data.transforms import ImageTransform, transforms
from adabet.data.unlabelled import unlabelled_batches

__all__ = [
    "PUBLISHED",
    "DataReport",
    "DataSplits",
    "EpochSampler",
    "ImageDataset",
    "ImageTransform",
    "LeftOut",
    "Loaders",
    "PublishedDataset",
    "Sample",
    "load_data",
    "transforms",
    "unlabelled_batches",
]
