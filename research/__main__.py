"""Lists the commands: python -m research"""

from pathlib import Path

from research.usage import command_lines

if __name__ == "__main__":
    print("Commands, each with --help: python -m research.NAME --help\n")
    print("\n".join(command_lines(Path(__file__).parent)))
