"""The network, its losses, its data and its training."""

import sys

if sys.argv[:1] == ["-m"]:  # python is looking for a command of this package, whose imports may be interrupted
    from trainer.command import prepare

    prepare()
