"""What training a share of the channels saves, by axis.

    python benchmarks/channels.py --model resnet50

AdaBet's half of the layers, of each a share of the channels; batch 8, 224 px, SGD with momentum, under lean. Bytes are
those of allocations at the peak of a step, with the saved activations of the chosen layers apart.
"""

import argparse

import torch

import adabet
from adabet.memory import measure_memory
from adabet.sizes import format_size
from adabet.tables import table
from memory import build
from plans import labelled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--layer-ratio", type=float, default=0.5)
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.0, 0.5, 0.1])
    options = parser.parse_args()
    model, inputs = build(options.model)
    batch = labelled(inputs[0])
    rows = []
    for axis in ("out", "in"):
        ranking = adabet.rank(model, inputs, channels=options.layer_ratio, axis=axis)
        first: dict[str, int] = {}
        for ratio in options.ratios:
            selection = ranking.select(layer_ratio=options.layer_ratio, channel_ratio=ratio, axis=axis)
            report = measure_memory(model, batch, selection, inference=False)
            chosen = set(selection.layers)
            found = {
                "peak": report.training.total,
                "gradients": report.training.gradients,
                "optimizer": report.training.optimizer,
                "saved": report.saved,
                "of chosen": sum(size for name, size in report.layers.items() if name in chosen),
            }
            first = first or found
            cells = [f"{format_size(size)} ({size / max(1, first[name]):.2f})" for name, size in found.items()]
            rows.append((f"{axis} {ratio:g}", *cells))
    print(f"{options.model}, half of the layers; in brackets the share of what all channels take")
    print(table(("channels", "peak", "gradients", "optimizer", "saved", "saved by chosen"), rows))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
