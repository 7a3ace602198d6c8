"""Accuracy of methods on one model and one folder of images, each at its own best learning rate.

Every method trains with the same epochs. Its learning rate is the one with the best validation accuracy with the first
seed, searched from the middle of the given ones outwards; then it trains with every seed, and is tested. Finished runs
are kept in a file of JSON lines, so that an interrupted comparison goes on where it stopped.

    python benchmarks/accuracy.py timm/mobilenetv2_100 "$ADABET_DATA/images/clothing" \
        --weights "$ADABET_DATA/weights/mobilenetv2_100.safetensors" --model-arg pad_type=same \
        --mean 0.5 --std 0.5 --image-size 160 --max-train 1200 --epochs 5 --results clothing.jsonl
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import adabet
from adabet.cli.setup import model_arguments
from adabet.data import DataSplits, load_data, transforms
from adabet.models import LoadedModel, load_model, new_head
from adabet.sizes import format_size
from adabet.tables import table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--weights")
    parser.add_argument("--model-arg", action="append")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--mean", type=float)
    parser.add_argument("--std", type=float)
    parser.add_argument("--max-train", type=int)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--layer-ratio", type=float, default=0.1)
    parser.add_argument(
        "--methods", nargs="+", default=["head", "random", "last-k", "size", "adabet", "adabet-b1", "full"]
    )
    parser.add_argument("--lr", type=float, nargs="+", default=[0.0003, 0.001, 0.003, 0.01, 0.03])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=Path("accuracy.jsonl"))
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> tuple[DataSplits, LoadedModel]:
    """The data, and the model that everything starts from."""
    loaded = load_model(
        options.model,
        weights=options.weights,
        image_size=options.image_size,
        mean=options.mean,
        std=options.std,
        **model_arguments(options.model_arg),
    )
    train, evaluation = (transforms(loaded.data_config, train=train) for train in (True, False))
    splits = load_data(
        options.data, transform_train=train, transform_eval=evaluation, max_train=options.max_train, cache=True
    )
    print(splits.report, flush=True)
    return splits, loaded


def run(
    options: argparse.Namespace, splits: DataSplits, model: torch.nn.Module, method: str, lr: float, seed: int
) -> dict:
    """Select, train and test once; the seed decides head, samples, selection and order."""
    torch.manual_seed(seed)
    new_head(model, len(splits.classes))
    start = time.perf_counter()
    name = method.removesuffix("-b1")
    own = {"normalize": "none"} if name != method else {}
    selection = adabet.select(
        name, model, splits.unlabelled(seed=seed), layer_ratio=options.layer_ratio, seed=seed, **own
    )
    selected = time.perf_counter()
    loaders = splits.loaders(batch_size=8, seed=seed)
    batch = next(iter(loaders.train))
    memory = adabet.measure_memory(model, batch, selection)
    measured = time.perf_counter()
    try:
        result = adabet.fit(model, loaders.train, loaders.val, selection, lr=lr, epochs=options.epochs, seed=seed)
    except adabet.errors.TrainingError as error:
        return {"method": method, "lr": lr, "seed": seed, "val": 0.0, "test": 0.0, "diverged": str(error)}
    trained = time.perf_counter()
    return {
        "method": method,
        "lr": lr,
        "seed": seed,
        "val": result.best.val_metrics["accuracy"],
        "test": adabet.evaluate(model, loaders.test)["accuracy"],
        "peak": memory.training.over_weights,
        "select_seconds": selected - start,
        "train_seconds": trained - measured,
        "layers": list(selection.layers),
    }


def climb(rates: list[float], score: Callable[[float], float]) -> float:
    """The rate with the best score, found by going uphill from the middle one."""
    place = len(rates) // 2
    while True:
        near = [index for index in (place - 1, place, place + 1) if 0 <= index < len(rates)]
        best = max(near, key=lambda index: score(rates[index]))
        if best == place:
            return rates[place]
        place = best


def main() -> None:
    options = parse()
    done = {}
    if options.results.exists():
        for line in options.results.read_text().splitlines():
            record = json.loads(line)
            done[record["method"], record["lr"], record["seed"]] = record
    splits, loaded = prepare(options)
    fresh = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    head = loaded.head[0]

    def cell(method: str, lr: float, seed: int) -> dict:
        if (method, lr, seed) not in done:
            weights = {name: value for name, value in fresh.items() if not name.startswith(head)}
            loaded.model.load_state_dict(weights, strict=False)
            record = run(options, splits, loaded.model, method, lr, seed)
            with options.results.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{method} lr {lr} seed {seed}: val {record['val']:.3f} test {record['test']:.3f}", flush=True)
            done[method, lr, seed] = record
        return done[method, lr, seed]

    rows = []
    for method in options.methods:
        best = climb(sorted(options.lr), lambda lr, method=method: cell(method, lr, options.seeds[0])["val"])
        records = [cell(method, best, seed) for seed in options.seeds]
        tests = [record["test"] for record in records]
        rows.append(
            (
                method,
                f"{best:g}",
                f"{statistics.mean(tests):.3f}",
                f"{statistics.stdev(tests):.3f}" if len(tests) > 1 else "",
                format_size(statistics.mean(record.get("peak", 0) for record in records)),
                f"{statistics.median(record.get('train_seconds', 0) for record in records):.0f}",
            )
        )
    print(table(("method", "lr", "test accuracy", "std", "peak over weights", "seconds"), rows))


if __name__ == "__main__":
    main()
