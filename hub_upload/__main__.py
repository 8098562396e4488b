"""`python -m hub_upload COMMAND`: what is done to checkpoints and repositories from the command line."""

import argparse
import sys

from . import card, checkpoint_conversion, checkpoint_upcycling, publication, space, verification


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0; 1 after an error that is the user's to mend; 130 if stopped."""
    parser = argparse.ArgumentParser(prog="python -m hub_upload", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (checkpoint_conversion, checkpoint_upcycling, card, publication, space, verification):
        module.add_command(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing half-done is left, and the same command can be run again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
