"""Of several processes the first prints and warns; all of them say their errors."""

import logging
import os
import sys
import warnings

from rich.console import Console

from jaxpref.processes.together import is_first


def first_prints(console: Console) -> None:
    """Makes it so in this process; called once the others are joined.

    What libraries in C print goes to standard error, as gloo's account of its connections, which
    would stand among the lines of `generate`.
    """
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
    os.dup2(2, 1)
    if not is_first():
        console.quiet = True
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
