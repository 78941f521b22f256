"""Lists the commands: python -m research"""

from pathlib import Path

from research import command
from research.usage import command_lines


def main(_: list[str]) -> None:
    """Prints the commands, a line each."""
    print("Commands, each with --help: python -m research.NAME --help\n")
    print("\n".join(command_lines(Path(__file__).parent)))


if __name__ == "__main__":
    command.run(main)
