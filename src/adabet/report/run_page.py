"""The page of one run."""

import math

from adabet.report.markup import Markup, facts, figure, join, table
from adabet.report.memory_parts import memory_figure
from adabet.report.page import Section, code, paragraphs, write_page
from adabet.report.plots.curves import Curve, draw_curves
from adabet.report.run_files import RunRecord
from adabet.report.run_layers import layers_section, ranking_section
from adabet.report.words import as_text, counted, duration, metric_text, percentage, rounded, size_text

USUAL = {
    "batch_norm": "eval",
    "channel_ratio": 1.0,
    "keep": "best",
    "lean": True,
    "recompute": False,
    "processes": 1,
    "mixed_precision": "no",
}
"""Options that are only told where they are other than this."""

TOLD = ("method", "layer_ratio", "epochs", "batch_size", "micro_batch", "optimizer", "lr", "weight_decay", "schedule")
"""Options that are told in any case where they have a value, in this order."""

NOT_TOLD = frozenset({"selection", "train_batches", "val_batches", "seed", "memory", "monitor", *TOLD})


def run_page(run: RunRecord) -> str:
    """A run's page as HTML text.

    Args:
        run: what its folder holds; of a run that did not finish, what there is.
    """
    sections = [
        Section("asked", "What was asked", _asked(run)),
        layers_section(run),
        _memory(run),
        _curves(run),
        ranking_section(run),
        _delta(run),
    ]
    versions = ", ".join(f"{name} {as_text(value)}" for name, value in run.environment.items())
    return write_page(
        title=_title(run),
        kicker=f"Run folder {run.path.resolve().name}",
        verdict=[f"{_trained(run)}{_reached(run)}{_took(run)}."],
        doubt=_caveat(run),
        notice=_notice(run),
        sections=[section for section in sections if section is not None],
        footer=f"Written by adabet report from {run.path}. The run: {versions}.",
    )


def _title(run: RunRecord) -> str:
    model = run.task.model if run.task else run.selection.fingerprint.model if run.selection else "a model"
    return f"{model} adapted by {run.method}" if run.task is None else f"{model} adapted to {_data(run.task.data)}"


def _data(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2] or name


def _notice(run: RunRecord) -> str | None:
    """What to know of a run that did not finish."""
    if run.finished:
        return None
    done, asked = len(run.history), run.options.get("epochs", "?")
    state = "before the end of its first epoch" if not done else f"after {done} of {counted_epochs(asked)}"
    return (
        f"This run has not finished: the folder was left {state}. What follows is what there is; "
        "to go on, give the same command with --resume (in Python: resume=True)."
    )


def counted_epochs(asked: object) -> str:
    """A number of epochs from a config."""
    return counted(asked, "epoch") if isinstance(asked, int) else f"{asked} epochs"


def _trained(run: RunRecord) -> str:
    if run.selection is None:
        return f"{run.method} had not chosen yet"
    chosen = run.selection
    if run.turns and len(run.turns) > 1:
        layers = len({layer for turn in run.turns for layer in turn.layers} - _head(run))
        times = f" in {counted(len(run.turns), 'selection')} one after the other"
    else:
        layers, times = len(chosen.layers), ""
    share = ""
    if run.result is not None:
        most = percentage(run.result.trained_parameters / run.result.model_parameters)
        share = f", at most {most} of the parameters at a time" if times else f", {most} of the parameters"
    head = " and the head" if chosen.head else ""
    return f"{run.method} trained {layers} of {counted(chosen.candidates, 'layer')}{head}{times}{share}"


def _head(run: RunRecord) -> set[str]:
    return set() if run.selection is None else {choice.layer for choice in run.selection.choices if choice.head}


def _reached(run: RunRecord) -> str:
    name, best = run.monitor, run.best
    if run.test is not None and name in run.test:
        images = "" if run.task is None or "test" not in run.task.images else f"{run.task.images['test']:,} "
        return f", and reached {_named(name, run.test[name])} on {images}test images"
    if best is None:
        return ""
    if name in best.val_metrics:
        return f", and reached {_named(name, best.val_metrics[name])} on validation"
    if best.val_loss is not None:
        return f", and reached a validation loss of {best.val_loss:.4g}"
    return f", and reached a training loss of {best.train_loss:.4g}"


def _named(name: str, value: float) -> str:
    return f"{metric_text(name, value)} {name}"


def _took(run: RunRecord) -> str:
    if run.memory is None:
        return ""
    peak = run.memory.training.total
    told = f", with a measured peak of {size_text(peak)} for a training step"
    if run.plan is not None:
        told += f": {rounded(peak / run.plan.budget)} of the budget of {size_text(run.plan.budget)}"
        if run.plan.full:
            full = size_text(run.plan.full)
            told += f", and {rounded(peak / run.plan.full)} of the {full} that training everything at once would take"
    return told


def _caveat(run: RunRecord) -> str:
    seed = f"seed {run.options['seed']}" if "seed" in run.options else "one seed"
    told = f"One run, {seed}: another seed or another method may fare as well; adabet compare tells."
    if run.test is None and run.best is not None and run.best.val_metrics:
        told += " The epoch was chosen on the same validation images, which flatters it a little."
    return told


def _asked(run: RunRecord) -> Markup:
    pairs: list[tuple[str, str | None]] = []
    if run.task is not None:
        classes = run.task.classes
        shown = ", ".join(classes[:8]) + (f" and {len(classes) - 8} more" if len(classes) > 8 else "")
        images = ", ".join(f"{count:,} {split}" for split, count in run.task.images.items())
        pairs += [("model", run.task.model), ("data", run.task.data), (f"{len(classes)} classes", shown)]
        pairs += [(name.replace("_", " "), as_text(value)) for name, value in run.task.model_options.items()]
        pairs.append(("images", images or None))
    elif run.selection is not None:
        pairs.append(("model", run.selection.fingerprint.model))
    if run.plan is not None:
        pairs += [("memory budget", size_text(run.plan.budget))]
    elif isinstance(run.options.get("memory"), int | float | str):
        size = run.options["memory"]
        pairs.append(("memory budget", size if isinstance(size, str) else size_text(size)))
    options = {**run.options, "method": run.method}
    if run.selection is not None:
        options["layer_ratio"] = options.get("layer_ratio") or run.selection.options.get("layer_ratio")
    pairs += [(_label(name), as_text(options[name])) for name in TOLD if options.get(name) is not None]
    pairs.append(("seed", as_text(options.get("seed"))))
    others = {
        name: value
        for name, value in options.items()
        if name not in NOT_TOLD and value not in (None, {}) and value != USUAL.get(name)
    }
    pairs += [(_label(name), as_text(value)) for name, value in others.items()]
    notes = None
    if run.plan is not None:
        notes = paragraphs(*run.plan.notes, class_="quiet")
    return join([facts(pairs), notes])


def _label(name: str) -> str:
    return {"lr": "learning rate"}.get(name, name.replace("_", " "))


def _memory(run: RunRecord) -> Section | None:
    if run.memory is None:
        return None
    limit = None if run.plan is None else run.plan.budget
    return Section("memory", "Memory", memory_figure({run.method: run.memory}, limit=limit))


def _curves(run: RunRecord) -> Section | None:
    if not run.history:
        return None
    best = None if run.best is None else run.best.epoch
    losses = [Curve("training loss", [(record.epoch, record.train_loss) for record in run.history])]
    validated = [(record.epoch, record.val_loss) for record in run.history if record.val_loss is not None]
    if validated:
        losses.append(Curve("validation loss", validated))
    plots = []
    for name in run.history[0].val_metrics:
        values = [(record.epoch, record.val_metrics[name]) for record in run.history if name in record.val_metrics]
        curve = Curve(f"validation {name}", values)
        high = 1.0 if name == "accuracy" else None
        plot = draw_curves(
            f"validation {name} by epoch", [curve], text=lambda value: f"{value:.3g}", name=name, high=high, best=best
        )
        plots.append(figure(f"{name.capitalize()} on validation, by epoch", plot))
    plot = draw_curves("loss by epoch", losses, text="{:.3g}".format, name="loss", low=0.0, best=best)
    plots.append(figure("Loss, by epoch", plot))
    names = list(run.history[0].val_metrics)
    rows = [
        [
            str(record.epoch),
            f"{record.train_loss:.4f}",
            "" if record.val_loss is None else f"{record.val_loss:.4f}",
            *(f"{record.val_metrics[name]:.4f}" if name in record.val_metrics else "" for name in names),
            f"{record.learning_rate:.2g}",
            duration(record.seconds),
        ]
        for record in run.history
    ]
    headings = ["epoch", "training loss", "validation loss", *names, "learning rate", "time"]
    marked = [index for index, record in enumerate(run.history) if record.epoch == best]
    numbers = table("Every epoch, the best one bold", headings, rows, numbers=range(1, len(headings)), marked=marked)
    took = duration(math.fsum(record.seconds for record in run.history))
    told = f"{counted(len(run.history), 'epoch')} in {took}."
    told += "" if best is None else f" The dotted line is the best one, {best}."
    if run.result is not None and run.result.stopped_early:
        told += " Training stopped early, since validation no longer improved."
    body = [Markup(f'<div class="panels">{join(plots)}</div>'), paragraphs(told or None, class_="quiet")]
    folded = Markup(f"<details><summary>The numbers</summary>{numbers}</details>")
    return Section("curves", "Training", join([*body, folded]))


def _delta(run: RunRecord) -> Section | None:
    if run.delta is None:
        return None
    path = run.path / run.delta
    which = "the weights that the run kept" if run.finished else "the best epoch so far"
    told = f"{path} ({size_text(path.stat().st_size)}) holds only what was trained: {which}. Base weights and delta "
    told += "together are the adapted model."
    if run.task is not None:
        lines = run.task.loading(str(path))
        after = "The model's outputs are the classes in the order above."
    else:
        lines = f"import adabet\n\nadabet.load_delta(model, {str(path)!r})  # your model, as it was before the run"
        after = None
    return Section(
        "delta",
        "Load the delta",
        join([paragraphs(told), code(lines, "Python that loads the delta"), paragraphs(after, class_="quiet")]),
    )
