"""A program that trains and kills itself (SIGKILL) in the middle of an epoch.

python -m tests.training.run_and_kill RUN_DIR OPTIMIZER EPOCH STEP; epoch 0: live to the end.
"""

import os
import signal
import sys

from adabet.training import EpochRecord, FitResult, fit
from tests.training.nets import choose_last, make_loaders, make_net

EPOCHS = 5


class KillAt:
    """Progress that ends this process as ``kill -9`` does."""

    def __init__(self, epoch: int, step: int) -> None:
        self.moment = (epoch, step)

    def start(self, *, epochs: int, first_epoch: int, steps: int | None) -> None: ...

    def step(self, *, epoch: int, step: int, loss: float) -> None:
        if (epoch, step) == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def epoch(self, record: EpochRecord) -> None: ...

    def stop(self) -> None: ...


def train(run_dir: str, optimizer: str, *, epochs: int = EPOCHS, resume: bool = False, progress: KillAt | None = None):
    """One run; returns the model and the result."""
    model = make_net()
    loaders = make_loaders()
    result: FitResult = fit(
        model,
        *loaders,
        choose_last(model),
        batch_norm="train",
        optimizer=optimizer,
        lr=0.05,
        epochs=epochs,
        keep="last",
        run_dir=run_dir,
        resume=resume,
        progress=progress,
    )
    return model, result


if __name__ == "__main__":
    folder, name, at_epoch, at_step = sys.argv[1:]
    train(folder, name, progress=KillAt(int(at_epoch), int(at_step)))
