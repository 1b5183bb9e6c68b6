"""The Beam jobs: wiring over pure functions of `masks` and `trainer`."""

import sys

if sys.argv[:1] == ["-m"]:  # python is looking for a command of this package, whose imports may be interrupted
    from trainer.command import prepare

    prepare()
