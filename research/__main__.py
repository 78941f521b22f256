"""Lists the commands and the configs: python -m research"""

from pathlib import Path

from research import command, shipped
from research.usage import command_lines


def main(_: list[str]) -> None:
    """Prints the commands, a line each, and the names of the configs."""
    print("Commands, each with --help: python -m research.NAME --help\n")
    print("\n".join(command_lines(Path(__file__).parent)))
    print("\nConfigs, each explained by --config=NAME --help:\n")
    print("\n".join(f"  {shipped.SCHEME}{name}" for name in shipped.configs()))


if __name__ == "__main__":
    command.run(main)
