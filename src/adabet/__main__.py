"""The `adabet` command."""

import sys


def main() -> None:
    """Run the command line; without its extra, say how to get it."""
    from adabet.errors import MissingExtraError
    from adabet.extras import require

    try:
        require("typer", "the command line")
        require("rich", "the command line")
    except MissingExtraError as error:
        sys.exit(f"error: {error}")
    from adabet.cli import app

    app()


if __name__ == "__main__":
    main()
