"""The `darkroom` command."""

from __future__ import annotations

import sys
import traceback

CRASHED = 70
"""Exit code of an error that nobody foresaw (EX_SOFTWARE)."""


def main() -> None:
    """Dispatch.

    Exit codes: 1 a gate said no or a deployment failed, 2 wrong use, 3 another error that we foresaw, 70 one that we
    did not.
    """
    from pipelines.core.errors import DarkroomError

    arguments = sys.argv[1:]
    try:
        if arguments[:1] == ["step"]:
            from pipelines.cli.step import main as step

            sys.exit(step(arguments[1:]))
        from pipelines.cli.app import app

        app(prog_name="darkroom")
    except DarkroomError as error:
        sys.stderr.write(f"darkroom: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        # Python would exit with 1, which says that a gate refused and that trying again is of no use.
        traceback.print_exc()
        sys.exit(CRASHED)


if __name__ == "__main__":
    main()
