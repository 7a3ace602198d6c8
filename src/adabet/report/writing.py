"""`write_report`: a run folder, or the results of a comparison, as one page."""

import os
from pathlib import Path

from adabet.errors import CheckpointError
from adabet.files import write_text
from adabet.report.run_files import read_run
from adabet.report.run_page import run_page


def write_report(source: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> Path:
    """Write one HTML page that needs nothing else: no network, no script.

    Args:
        source: a run folder, finished or not, or the results file of a comparison.
        output: the file to write; None: ``report.html`` in the run folder, or the results file's name with ``.html``.

    Returns:
        The file.

    Raises:
        CheckpointError: if there is no such run or results file, or it is damaged or of another version.
        StorageError: if the page cannot be written; one that stood there is whole.
    """
    source = Path(source)
    if source.is_dir():
        page, place = run_page(read_run(source)), source / "report.html"
    elif source.is_file():
        page, place = _grid_page(source), source.with_suffix(".html")
    else:
        raise CheckpointError(f"expected a run folder or the results file of a comparison; {source} is not there")
    target = place if output is None else Path(output)
    write_text(target, page)
    return target


def _grid_page(source: Path) -> str:
    from adabet.experiments.results import GridResults
    from adabet.report.grid_page import grid_page

    return grid_page(GridResults.read(source))
