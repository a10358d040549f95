"""Drops the messages that image decoders (C libraries) write to standard error about damaged files: they name no
file, and some come twice.

Our commands list unreadable files with names and reasons themselves. They send their standard error through this
script, which passes on every other line:

    python -I -S decoder_messages.py < the messages > the terminal

It runs as a separate process, so that the last message of a library that aborts the program is still shown. It imports
the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re

COLOUR = rb"(?:\x1b\[[0-9;]*m)*"
# nvImageCodec and OpenCV name themselves; libjpeg's texts (jerror.h), libpng's and libtiff's are known by their
# beginnings; Pillow's warnings by the file that they come from.
STARTS = (
    rb"%(c)s\[ ?(?:TRACE|DEBUG|INFO|WARN|WARNING|ERROR|FATAL)(?::\d[^\]]*)?\] ?%(c)s ?(?:\[[\w-]+\]|global |imread)",
    rb"Corrupt JPEG data: |Premature end of (?:JPEG|input) file|Bogus |Not a JPEG file: |Empty JPEG image",
    rb"Invalid (?:JPEG file structure: |SOS parameters|progressive/lossless parameters|component ID|crop request)",
    rb"Invalid restart interval|Inconsistent progression sequence|Warning: unknown JFIF revision",
    rb"Unsupported (?:JPEG|marker type|color conversion)|Unknown Adobe color transform|Sampling factors too large",
    rb"(?:Quantization|Huffman|Arithmetic) table 0x|Application transferred too |Maximum supported image dimension",
    rb"libpng (?:warning|error): |TIFF\w+: |_TIFF\w+: |\w+\.tiff?: (?:Warning, |Error, )|libwebp|OpenJPEG|opj_",
    rb"\S*[/\\]PIL[/\\]\w+\.py:\d+: \w*Warning: ",
)
MESSAGES = re.compile(b"|".join(STARTS) % {b"c": COLOUR})
LONGEST = 4096  # of a line without an end that is kept back; longer ones are passed on piece by piece


class Filter:
    """``feed(data)`` gives what is to be shown of a stream; ``end()`` what was kept back."""

    def __init__(self) -> None:
        self.kept = b""
        self.after_pillow = False  # whose warnings show their line of code behind them

    def feed(self, data: bytes) -> bytes:
        lines = re.split(rb"(?<=[\n\r])", self.kept + data)
        self.kept = lines.pop()
        shown = b"".join(line for line in lines if not self._is_decoders(line))
        if self.kept and (len(self.kept) > LONGEST or not self._may_become_decoders(self.kept)):
            shown, self.kept = shown + self.kept, b""
        return shown

    def end(self) -> bytes:
        return b"" if self._is_decoders(self.kept) else self.kept

    def _is_decoders(self, line: bytes) -> bool:
        is_code, self.after_pillow = self.after_pillow and line.startswith(b"  "), False
        if is_code:
            return True
        if MESSAGES.match(line):
            self.after_pillow = b".py:" in line.partition(b"Warning")[0]
            return True
        return False

    def _may_become_decoders(self, start: bytes) -> bool:
        return start[:1].isalpha() or start[:1] in b"_/.[\x1b" or self.after_pillow


def main() -> None:
    """Standard input to standard output, until its end."""
    passing = Filter()
    while data := os.read(0, 1 << 16):
        write(passing.feed(data))
    write(passing.end())


def write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # nobody reads any more
        main()
