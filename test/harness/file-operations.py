"""Does to a file what it is told, line by line, and answers each line: for system calls that Node does not have.

    python3 file-operations.py PATH NOISE

A line is a JSON list [number, operation, offset, size, at]; what is written are the bytes of the file NOISE from `at`. The answer is
"NUMBER RESULT": the CRC-32 of what was read, or "ok", or the name of an error. Ends when stdin closes.
"""

import ctypes
import errno
import json
import mmap
import os
import sys
import zlib

PUNCH_HOLE = 0x02 | 0x01
ZERO_RANGE = 0x10 | 0x01

path = sys.argv[1]
with open(sys.argv[2], "rb") as noise_file:
    noise = noise_file.read()
libc = ctypes.CDLL(None, use_errno=True)
scratch = mmap.mmap(-1, 4 * 1024 * 1024)  # aligned to a page, as O_DIRECT asks
buffered = direct = -1
mapped = None


def reopen(*_):
    global buffered, direct
    close()
    buffered = os.open(path, os.O_RDWR)
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)


def close(*_):
    global buffered, direct, mapped
    if mapped is not None:
        mapped.close()
        mapped = None
    for file in (buffered, direct):
        if file >= 0:
            os.close(file)
    buffered = direct = -1


def mapping():
    """Of the whole file, as large as it is now."""
    global mapped
    size = os.fstat(buffered).st_size
    if mapped is None or len(mapped) != size:
        if mapped is not None:
            mapped.close()
        mapped = mmap.mmap(buffered, size)
    return mapped


def pwrite(file, data, offset):
    written = os.pwritev(file, [data], offset)
    if written != len(data):
        raise RuntimeError(f"a write of {len(data)} bytes took {written}")


def write_direct(offset, size, at):
    scratch[:size] = noise[at:at + size]
    pwrite(direct, memoryview(scratch)[:size], offset)


def read_direct(offset, size, at):
    count = os.preadv(direct, [memoryview(scratch)[:size]], offset)
    return zlib.crc32(scratch[:count])


def write_mapped(offset, size, at):
    mapping()[offset:offset + size] = noise[at:at + size]


def fallocate(mode, offset, size):
    if libc.fallocate64(buffered, mode, ctypes.c_int64(offset), ctypes.c_int64(size)) < 0:
        raise OSError(ctypes.get_errno(), "fallocate")


OPERATIONS = {
    "reopen": reopen,
    "close": close,
    "read": lambda offset, size, at: zlib.crc32(os.pread(buffered, size, offset)),
    "read direct": read_direct,
    "read mapped": lambda offset, size, at: zlib.crc32(mapping()[offset:offset + size]),
    "write": lambda offset, size, at: pwrite(buffered, noise[at:at + size], offset),
    "write direct": write_direct,
    "write mapped": write_mapped,
    "msync": lambda offset, size, at: mapping().flush(),
    "truncate": lambda offset, size, at: os.ftruncate(buffered, size),
    "punch": lambda offset, size, at: fallocate(PUNCH_HOLE, offset, size),
    "zero": lambda offset, size, at: fallocate(ZERO_RANGE, offset, size),
    "fsync": lambda offset, size, at: os.fsync(buffered),
}

for line in sys.stdin:
    number, operation, offset, size, at = json.loads(line)
    try:
        result = OPERATIONS[operation](offset, size, at)
        result = "ok" if result is None else result
    except OSError as error:
        result = errno.errorcode.get(error.errno, str(error))
    os.write(1, b"%d %s\n" % (number, str(result).encode()))
