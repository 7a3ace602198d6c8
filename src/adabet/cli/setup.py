"""What `rank` and `tune` have in common: a model, images, and the options for both."""

import ast
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adabet.cli.show import bar, err, note
from adabet.errors import CheckpointError, ModelError, OptionError
from adabet.models import AudioConfig, DataConfig, LoadedModel

if TYPE_CHECKING:
    from torch import Tensor

    from adabet.data import DataSplits, LeftOut

Model = Annotated[
    str,
    typer.Argument(
        help="timm/NAME, torchvision/NAME, hf/NAME, mcu/NAME, audio/NAME, demo, or a folder that a library saved."
    ),
]
Data = Annotated[
    str,
    typer.Argument(
        help="A folder of images (for audio/NAME of sound), or one of pets, flowers, dogs, cub (downloaded)."
    ),
]
Weights = Annotated[Path | None, typer.Option(help="A local safetensors file with pre-trained weights.")]
Pretrained = Annotated[bool, typer.Option(help="Fetch the library's own pre-trained weights.")]
ModelArguments = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="NAME=VALUE", help="Passed to the model's constructor; may be repeated."),
]
ImageSize = Annotated[int | None, typer.Option(help="Pixels; default: the model's own.")]
Mean = Annotated[float | None, typer.Option(help="Of pixels in [0, 1], in place of the model's own.")]
Std = Annotated[float | None, typer.Option(help="Like --mean.")]
MethodName = Annotated[str, typer.Option(help="Who chooses; `adabet methods` lists them.")]
LayerRatio = Annotated[float, typer.Option(help="Share of the layers to choose, the paper's rho.")]
ChannelRatio = Annotated[float, typer.Option(help="Share of each chosen layer's channels, the paper's rho_ch.")]
Axis = Annotated[str, typer.Option(help="Whose channels: 'out' (the paper's) or 'in' (saves activations).")]
Samples = Annotated[int, typer.Option(help="Unlabelled samples that AdaBet looks at.")]
Normalize = Annotated[str, typer.Option(help="AdaBet divides by: activations, parameters or none.")]
SamplesInMemory = Annotated[
    int | None, typer.Option(help="AdaBet: most samples at once; fewer take more passes. Default: all.")
]
Sketch = Annotated[
    int | None, typer.Option(help="AdaBet: estimate distances from so many random projections, in one pass.")
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="NAME=VALUE", help="Of the method, such as units=27946 for medyate; may be repeated."
    ),
]
Seed = Annotated[int, typer.Option(help="Of every random choice.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead.")]


RANDOM_AT_FIRST = ("timm", "torchvision", "hf", "mcu", "audio")
"""Whose models have random weights unless some are given or fetched."""

OWN_OPTIONS = frozenset({"name", "weights", "pretrained", "image_size", "mean", "std"})
"""What `load_model` is told by other options."""


def named_values(option: str, pairs: Sequence[str] | None) -> dict[str, Any]:
    """Values by name from ``NAME=VALUE`` texts; what is no Python literal is text.

    Raises:
        OptionError: if one has no equals sign.

    Examples:
        >>> named_values("--model-arg", ["pad_type=same", "drop_rate=0.1"])
        {'pad_type': 'same', 'drop_rate': 0.1}
    """
    values = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise OptionError(f"expected {option} NAME=VALUE, got {pair!r}")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    return values


def model_arguments(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Arguments of a model's constructor.

    Raises:
        OptionError: if one names what the command line has an option for.
    """
    arguments = named_values("--model-arg", pairs)
    for name in arguments.keys() & OWN_OPTIONS:
        raise OptionError(f"expected --model-arg for the model's constructor, got {name!r}; see --help for that")
    return arguments


def load(
    name: str,
    *,
    weights: Path | None,
    pretrained: bool,
    model_arg: Sequence[str] | None,
    image_size: int | None,
    mean: float | None,
    std: float | None,
) -> LoadedModel:
    """The model that the options describe; says what there is to know of its weights."""
    from adabet.models import load_model

    loaded = load_model(
        name,
        weights=weights,
        pretrained=pretrained,
        image_size=image_size,
        mean=mean,
        std=std,
        **model_arguments(model_arg),
    )
    library, _, rest = name.partition("/")
    if weights is None and not pretrained and library in RANDOM_AT_FIRST and not Path(rest).is_dir():
        note("the model has random weights: give --weights FILE, or --pretrained where there is a network")
    for text in loaded.notes:
        note(text)
    return loaded


def method_options(
    method: str,
    pairs: Sequence[str] | None,
    *,
    samples: int,
    normalize: str,
    samples_in_memory: int | None,
    sketch: int | None,
) -> dict[str, Any]:
    """The options that a method takes, of those that the command line has for AdaBet, and those given by name."""
    from adabet.methods import find_method

    given = {
        "samples": samples,
        "normalize": normalize,
        "samples_in_memory": samples_in_memory,
        "sketch": sketch,
    }
    taken = {name: value for name, value in given.items() if name in find_method(method).options}
    return taken | named_values("--option", pairs)


def sample_config(loaded: LoadedModel) -> DataConfig | AudioConfig:
    """What images, or what sound, the model takes.

    Raises:
        ModelError: if it takes neither.
    """
    config = loaded.data_config or loaded.audio_config
    if config is None:
        raise ModelError(
            f"{loaded.name} reads no images and no sound; the command line adapts models that do, the library any other"
        )
    return config


def sample_batches(data: str, config: DataConfig | AudioConfig, *, samples: int, seed: int) -> list[Any]:
    """Unlabelled batches of 8 from a folder or a dataset by name; says what could not be read."""
    from adabet.data import audio_transforms, load_data, transforms, unlabelled_batches

    left_out: Sequence[LeftOut]
    if isinstance(config, AudioConfig):
        batches, left_out = unlabelled_batches(
            Path(data), audio_transforms(config, train=False), samples=samples, seed=seed
        )
        return _noting(batches, left_out)
    transform = transforms(config, train=False)
    if Path(data).is_dir():
        batches, left_out = unlabelled_batches(
            Path(data), transform, samples=samples, channels=config.input_size[0], seed=seed
        )
    else:
        with bar("reading images") as progress:
            # one image of each class at least is taken; the 200 of CUB are the most
            splits = load_data(
                data,
                transform_train=transform,
                transform_eval=transform,
                max_train=max(200, samples),
                max_val=200,
                max_test=200,
                progress=progress,
                cache=False,
            )
        batches, left_out = (
            splits.unlabelled(samples=min(samples, len(splits.train)), seed=seed),
            splits.report.left_out,
        )
    return _noting(batches, left_out)


def _noting(batches: list[Any], left_out: "Sequence[LeftOut]") -> list[Any]:
    """The batches; says what could not be read."""
    for file in left_out:
        note(f"{file.path} cannot be read and was left out: {file.reason}")
    return batches


def labelled_splits(
    data: str, config: DataConfig | AudioConfig, *, seed: int, max_train: int | None = None
) -> "DataSplits":
    """A dataset in its splits, every file read once; says what is in it on standard error."""
    from adabet.data import load_audio, load_data, transforms

    with bar(f"reading {'sound' if isinstance(config, AudioConfig) else 'images'}") as progress:
        if isinstance(config, AudioConfig):
            splits = load_audio(data, config, seed=seed, max_train=max_train, progress=progress)
        else:
            splits = load_data(
                data,
                transform_train=transforms(config, train=True),
                transform_eval=transforms(config, train=False),
                seed=seed,
                max_train=max_train,
                progress=progress,
            )
    err.print(str(splits.report), soft_wrap=True)
    return splits


def unlabelled(splits: "DataSplits", samples: int, seed: int) -> "list[Tensor]":
    """Batches of training samples for a method that needs no labels; all of them if there are fewer than asked for."""
    return splits.unlabelled(samples=min(samples, len(splits.train)), seed=seed)


def read_file(path: Path) -> str:
    """The text of a file that adabet wrote.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"could not read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"could not read {path}: it is not text") from error


@contextmanager
def notes_for_warnings() -> Iterator[None]:
    """Show the library's warnings as notes, one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for warning in caught:
                note(str(warning.message))


def texts(text: str | None) -> list[str] | None:
    """The items of a list with commas; None if there is no list."""
    return None if text is None else [item.strip() for item in text.split(",") if item.strip()]
