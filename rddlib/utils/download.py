"""Downloads that end in a complete file with the right checksum or in no file, within a time limit."""

import time
import urllib.request
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path

from rddlib.utils.checkpoint import whole_or_absent
from rddlib.utils.errors import UserError
from rddlib.utils.text import say

LONGEST = 3600.0  # seconds that one file may take, however steadily it comes


def fetch(address: str, path: Path, checksum: str, timeout: float = 30.0) -> None:
    """Download a file to `path`, where it appears only when complete.

    checksum: the beginning of its sha256; timeout: seconds without an answer after which to give up. Raises UserError if
    the address cannot be reached, the checksum differs, or `path` cannot be written.
    """
    by_hand, total, began = f"put the file at {path} by hand", sha256(), time.monotonic()
    say(f"downloading {address} to {path}")
    try:
        with whole_or_absent(path) as file, urllib.request.urlopen(address, timeout=timeout) as answer:
            while block := answer.read1(2**20):  # whatever has arrived
                if time.monotonic() - began > LONGEST:
                    raise TimeoutError(f"not done after {LONGEST:.0f} s")
                total.update(block)
                file.write(block)
            if not total.hexdigest().startswith(checksum):
                raise UserError(f"the download of {address} is damaged: try again, or {by_hand}")
    except (OSError, HTTPException) as error:
        raise UserError(f"cannot download {address} ({error}): {by_hand}") from None
