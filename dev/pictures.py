"""Makes the pictures of docs/ that show a terminal or a page.

    python dev/pictures.py terminal docs/pictures/terminal.svg --lines ' step 1 ' '╰' -- \\
        sdjax --config mine.py
    python dev/pictures.py page docs/pictures/curves.png 'report.html#curves' --height 560

A terminal is a real one: the command runs in a pseudo-terminal, and the picture has the lines that
it leaves there. A page is a file or an address; an installed Chromium draws it. Needs the extra
`test` and `pip install pyte`.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import itertools
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import termios
import time
from pathlib import Path
from typing import Any

from rich import _export_format as formats
from rich.console import Console
from rich.style import Style
from rich.text import Text

KEY_S = 3.0
"""Seconds between two keys."""
# The picture loads nothing: a reader's own font is good enough.
SVG = re.sub(r"@font-face \{\{.*?\}\}", "", formats.CONSOLE_SVG_FORMAT, flags=re.DOTALL)
SVG = SVG.replace("Fira Code, monospace", "ui-monospace, 'DejaVu Sans Mono', Menlo, monospace")


def terminal(chosen: argparse.Namespace) -> None:
    """Runs a command in a terminal and draws what it shows at the end."""
    import pyte

    pyte.graphics.TEXT[2] = "+blink"  # it knows no dim text
    screen = pyte.Screen(chosen.columns, chosen.rows)
    process, fd = pty.fork()
    if not process:
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        os.execvp(chosen.command[0], chosen.command)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", chosen.rows, chosen.columns, 0, 0))
    screen.write_process_input = lambda data: os.write(fd, data.encode())  # answers to questions
    follow(fd, pyte.ByteStream(screen), list(chosen.keys), chosen.seconds)
    os.kill(process, signal.SIGKILL)  # nothing, if it has ended
    os.waitpid(process, 0)
    rows = [styled(screen, y) for y in range(chosen.rows)]
    first, last = ends([row.plain for row in rows], chosen.lines)
    draw(rows[first:last], chosen)


def follow(fd: int, stream: Any, keys: list[str], seconds: float) -> None:
    """Feeds the terminal until its program ends or the seconds are over; presses the keys."""
    start = pressed = time.monotonic()
    while (now := time.monotonic()) - start < seconds:
        if keys and now - pressed > KEY_S:
            os.write(fd, keys.pop(0).encode().decode("unicode_escape").encode())
            pressed = now
        if select.select([fd], [], [], 0.2)[0]:
            try:
                stream.feed(os.read(fd, 65536))
            except OSError:  # the program has ended
                return


def styled(screen: Any, y: int) -> Text:
    """Returns a line of a screen with its colours."""
    row = Text()
    cells = (screen.buffer[y][x] for x in range(screen.columns))
    for look, alike in itertools.groupby(cells, key=lambda cell: cell._replace(data="")):
        style = Style(
            color=colour(look.fg),
            bgcolor=colour(look.bg),
            bold=look.bold,
            dim=look.blink,
            reverse=look.reverse,
        )
        row.append("".join(cell.data for cell in alike), style)
    return row


def colour(name: str) -> str | None:
    """Returns a colour of pyte as rich names it; None is the terminal's own."""
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    name = name.replace("bright", "bright_").replace("brown", "yellow")
    return None if name == "default" else name


def ends(lines: list[str], words: list[str] | None) -> tuple[int, int]:
    """Returns where the lines begin that hold the first text, and where the second one's end."""
    used = max((i for i, line in enumerate(lines) if line.strip()), default=0)
    if not words:
        return 0, used + 1
    first = next(i for i, line in enumerate(lines) if words[0] in line)
    last = next(i for i, line in enumerate(lines) if i >= first and words[1] in line)
    return first, last + 1


def draw(rows: list[Text], chosen: argparse.Namespace) -> None:
    """Writes lines of a terminal as SVG, under the command as their title."""
    console = Console(
        record=True,
        width=chosen.columns,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    for row in rows:
        console.print(row, no_wrap=True, overflow="crop")
    title = chosen.title or shlex.join(chosen.command)
    Path(chosen.picture).write_text(
        console.export_svg(title=title, code_format=SVG, unique_id="terminal"), encoding="utf-8"
    )


def page(chosen: argparse.Namespace) -> None:
    """Draws a page as PNG with at most 256 colours."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    file, _, view = chosen.address.partition("#")
    address = file if "://" in file else Path(file).resolve().as_uri()
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": chosen.width, "height": chosen.height})
        shown.goto(f"{address}#{view}" if view else address, wait_until="load")
        shown.wait_for_timeout(1000 * chosen.wait)
        for selector in chosen.click:
            shown.locator(selector).first.click()
            shown.wait_for_timeout(1000)
        if chosen.hover:
            shown.locator(chosen.hover).first.hover()
            shown.wait_for_timeout(500)
        whole = Image.open(io.BytesIO(shown.screenshot())).convert("RGB")
        browser.close()
    few = whole.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(chosen.picture, optimize=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("terminal", help=terminal.__doc__)
    one.set_defaults(make=terminal)
    one.add_argument("picture")
    one.add_argument("--lines", nargs=2, metavar="TEXT", help="of the first and the last line")
    one.add_argument("--columns", type=int, default=100)
    one.add_argument("--rows", type=int, default=120)
    one.add_argument(
        "--keys", nargs="*", default=[], help="pressed one by one, three seconds apart"
    )
    one.add_argument("--seconds", type=float, default=1800.0, help="after which the command ends")
    one.add_argument("--title", help="instead of the command")
    one.add_argument("command", nargs="+")
    one = kinds.add_parser("page", help=page.__doc__)
    one.set_defaults(make=page)
    one.add_argument("picture")
    one.add_argument("address", help="a file or an address, with #VIEW")
    one.add_argument("--width", type=int, default=1280)
    one.add_argument("--height", type=int, default=900)
    one.add_argument("--click", nargs="*", default=[], metavar="SELECTOR")
    one.add_argument("--hover", metavar="SELECTOR")
    one.add_argument("--wait", type=float, default=2.0, help="seconds until the page is drawn")
    chosen = parser.parse_args()
    chosen.make(chosen)


if __name__ == "__main__":
    main()
