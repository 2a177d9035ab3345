"""How Python's own objects reach the processes of a run: by cloudpickle, through an open file that has no name.

To read a pickle is to run what its writer wants. This one only the process that starts the others can have written: the
file is never in any folder, and they inherit it open. No run folder holds one.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from locallearn.errors import UserError, in_one_line

CHUNK = 1 << 30


@contextmanager
def handed_over(objects: Mapping[str, Any]) -> Iterator[int | None]:
    """The number of an open file with these objects, for processes that inherit it; None if there are none. Raises
    UserError for one that cannot be sent."""
    if not objects:
        yield None
        return
    with tempfile.TemporaryFile(prefix="locallearn-") as file:
        import cloudpickle

        for place, value in objects.items():
            try:
                cloudpickle.dumps(value)
            except Exception as error:  # whatever a part of it raises
                raise UserError(
                    f"{place}={type(value).__name__}(...) cannot be sent to the processes of the run ("
                    f"{in_one_line(error)}): leave open files, locks and generators out of it, or choose runtime=serial"
                ) from error
        cloudpickle.dump(dict(objects), file)
        file.flush()
        yield file.fileno()


def taken_over(number: int | None) -> dict[str, Any]:
    """The objects that the process which started this one has handed over."""
    if number is None:
        return {}
    import cloudpickle

    content, size = io.BytesIO(), os.fstat(number).st_size
    while part := os.pread(number, min(CHUNK, size), content.tell()):
        content.write(part)
    content.seek(0)
    return cloudpickle.load(content)
