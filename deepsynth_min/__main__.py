"""`python -m deepsynth_min`: the commands there are, a line each.

In: nothing. Out: what each command's file says of itself in its first lines.
"""

import ast
import sys
from pathlib import Path


def commands() -> dict[str, str]:
    """Name -> what it does, of the files here that are run."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text = path.read_text("utf-8")
        if path.stem != "__main__" and 'if __name__ == "__main__":' in text:
            about = ast.get_docstring(ast.parse(text)).split("\n\n")[0]
            found[path.stem] = about.partition("`: ")[2].split("\n`")[0].replace("\n", " ")
    return found


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] not in ("-h", "--help"):
        line = f"error: {arguments[0]}: say python -m deepsynth_min.NAME, NAME one of "
        print(line + ", ".join(commands()), file=sys.stderr)
        return 2
    for name, about in commands().items():
        print(f"python -m deepsynth_min.{name:10} {about}")
    print("\nEach explains its options with --help; train runs under torchrun too.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
