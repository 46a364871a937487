"""Runs a command on a terminal of its own, COLUMNS wide. What comes to the terminal goes to stdout, what comes on stdin is typed."""
import fcntl
import os
import pty
import select
import struct
import sys
import termios

ROWS = 24
PART_BYTES = 65536

columns, *command = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', ROWS, int(columns), 0, 0))
    os.execvp(command[0], command)

sources = [terminal, sys.stdin.fileno()]
while True:
    ready, _, _ = select.select(sources, [], [])
    if sys.stdin.fileno() in ready:
        typed = os.read(sys.stdin.fileno(), PART_BYTES)
        if typed:
            os.write(terminal, typed)
        else:
            sources.remove(sys.stdin.fileno())
    if terminal in ready:
        try:
            shown = os.read(terminal, PART_BYTES)
        except OSError:  # EIO: nobody has the other end open any more
            shown = b''
        if not shown:
            break
        sys.stdout.buffer.write(shown)
        sys.stdout.buffer.flush()

_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
