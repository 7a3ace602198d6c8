"""What README's blocks take for granted: a model, batches and loaders, as small as they can be."""

from typing import Any

import peft
import transformers
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from adabet.demo import demo_model
from adabet.demo.digits import load_part


def readme_names() -> dict[str, Any]:
    """Names by which README calls things."""
    digits = load_part("labelled")
    loader = DataLoader(TensorDataset(digits.images[:8], digits.labels[:8]), batch_size=8)
    return {
        "model": demo_model(),
        "fresh_model": demo_model(),
        "batches": load_part("unlabelled").images.split(8),
        "train_loader": loader,
        "val_loader": loader,
        "loss_fn": F.cross_entropy,
        "LoraConfig": peft.LoraConfig,
        "Trainer": transformers.Trainer,
        "args": transformers.TrainingArguments("out", use_cpu=True, report_to=[]),
        "texts": [],
        "x": digits.images[:8],
        "y": digits.labels[:8],
    }
