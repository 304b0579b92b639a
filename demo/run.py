"""`python -m demo.run`: the demonstration's outer process, which outlives the story and clears up after it.

The story is told by a child. Here signals are not handlers but things that are waited for, as is the
child's end, so an interruption has one place: after it, as after a good end, the stage is struck.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import signal
import sys
import time
import traceback

STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
signal.pthread_sigmask(signal.SIG_BLOCK, STOPS | {signal.SIGCHLD})  # before anything is made, or takes time

from demo.show import Show, WrongError  # noqa: E402
from demo.stage import Stage, adopt_orphans, build, plan, strike  # noqa: E402
from demo.story import tell  # noqa: E402

STORY_SECONDS = 120
LOG_LINES = 15


def main() -> int:
    """0: all as it must be; 1: a step was wrong; 2: wrong usage; 128 + n: ended by signal n."""
    parser = argparse.ArgumentParser(prog="python -m demo.run", description="Two look-alike guests, told apart.")
    parser.add_argument("--datapath", choices=["ebpf", "nft"], default="ebpf")
    parser.add_argument("--name", type=name, default=f"demo{secrets.token_hex(3)}", help="of all that it makes")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("the demonstration makes network namespaces and loads programs: run it as root", file=sys.stderr)
        return 2
    show, began = Show(), time.perf_counter()
    show.title(f"metashim on {arguments.datapath}: two guests with one address, each with metadata of its own")
    adopt_orphans()
    stage, status = plan(arguments.name, arguments.datapath), 1
    try:
        build(stage)
        status = watch(start(show, stage))
    finally:
        left = strike(stage)
    return report(show, status, left, time.perf_counter() - began)


def name(text: str) -> str:
    """The prefix of all that is made. Raises ValueError, which argparse reports."""
    if not re.fullmatch("[a-z0-9]{4,12}", text):
        raise ValueError
    return text


def start(show: Show, stage: Stage) -> int:
    """Tell the story in a child, out of reach of the terminal's signals; its pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        status = child(show, stage)
        sys.stdout.flush()
    finally:
        os._exit(status)


def child(show: Show, stage: Stage) -> int:
    """The story, and in words why it ended early."""
    try:
        tell(show, stage)
    except WrongError as error:
        show.say(str(error), "red")
    except Exception:  # noqa: BLE001 (the boundary of the story)
        show.say(traceback.format_exc(), "red")
    else:
        return 0
    if stage.log.exists():
        show.say("the last that the agent and the proxy wrote:")
        for line in stage.log.read_text().splitlines()[-LOG_LINES:]:
            show.say(line, "dim")
    return 1


def watch(pid: int) -> int:
    """Wait for the story's end, a signal, or too long a time; the exit status."""
    end = time.monotonic() + STORY_SECONDS
    while (seconds := end - time.monotonic()) > 0:
        came = signal.sigtimedwait(STOPS | {signal.SIGCHLD}, seconds)
        if came is not None and came.si_signo in STOPS:
            return 128 + came.si_signo
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) and 1
    print(f"expected the story to end within {STORY_SECONDS} s", file=sys.stderr)
    return 1


def report(show: Show, status: int, left: list[str], seconds: float) -> int:
    """The last line; the exit status."""
    show.restore()
    behind = f"left behind: {', '.join(left)}" if left else "nothing is left behind"
    if status > 128:
        words = f"ended by {signal.Signals(status - 128).name}"
    else:
        words = "a step came out wrong" if status else "all came out as it must"
    show.result(f"{words}; {behind}; {seconds:.1f} s", well=not status and not left)
    return status or int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
