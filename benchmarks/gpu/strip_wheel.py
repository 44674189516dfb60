"""Takes files out of a wheel that the machine it is for does not need. Used by pack.sh.

python benchmarks/gpu/strip_wheel.py WHEEL REGEX [--keep NAME]

Every file whose path the regular expression finds is left out, all but the one named NAME, which must be there.
"""

import argparse
import re
import sys
import zipfile
from pathlib import Path, PurePosixPath


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("regex")
    parser.add_argument("--keep", help="name of a file that stays")
    arguments = parser.parse_args()
    try:
        strip_wheel(arguments.wheel, arguments.regex, arguments.keep)
    except ValueError as error:
        sys.exit(str(error))


def strip_wheel(wheel: Path, regex: str, keep: str | None = None) -> None:
    """Rewrite the wheel without those files, in its `RECORD` too.

    Raises:
        ValueError: the wheel has no file named `keep`.
    """
    with zipfile.ZipFile(wheel) as old:
        found = [name for name in old.namelist() if re.search(regex, name)]
        left_out = {name for name in found if PurePosixPath(name).name != keep}
        if keep is not None and len(left_out) == len(found):
            names = ", ".join(sorted(PurePosixPath(name).name for name in found))
            raise ValueError(f"{wheel.name}: found no {keep}; expected one of {names}")
        stripped = wheel.with_suffix(".stripped")
        with zipfile.ZipFile(stripped, "w", zipfile.ZIP_DEFLATED) as new:
            for item in old.infolist():
                if item.filename in left_out:
                    continue
                content = old.read(item)
                if item.filename.endswith(".dist-info/RECORD"):
                    lines = content.decode().splitlines(keepends=True)
                    content = "".join(line for line in lines if line.split(",")[0] not in left_out).encode()
                new.writestr(item, content)
    stripped.replace(wheel)


if __name__ == "__main__":
    main()
