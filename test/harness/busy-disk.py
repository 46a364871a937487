"""A program that lives in a mount while its FUSE server is killed: it reads and writes working copies, knows every byte that it
has written, and stops at the first error or wrong byte.

    python3 busy-disk.py IMAGE FOLDER ALIAS SEED

IMAGE is what the working copies hold at first; FOLDER has one, `machine`, and becomes the working directory; ALIAS is the path
/BLOB/VERSION of another one, which is opened before it exists and written to in between. The first half of `machine` is written
with O_DIRECT, the second through the page cache.

Prints "ready", then a line "done N" after every 50 operations, N so far; when stdin closes it compares all bytes and prints
"longest MILLISECONDS", the longest that an operation took. An error ends it with a traceback.
"""

import mmap
import os
import random
import select
import sys
import time

PAGE = 4096
WRITE_PAGES_MAX = 16

image, folder, alias, seed = sys.argv[1:]
chance = random.Random(seed)
model = bytearray(open(image, "rb").read())
alias_model = bytearray(model)
size = len(model)
half = size // 2 // PAGE * PAGE
os.chdir(folder)
direct = os.open("machine", os.O_RDWR | os.O_DIRECT)
buffered = os.open("machine", os.O_RDWR)
alias_file = os.open(alias, os.O_RDWR)
alias_number = os.fstat(alias_file).st_ino
buffer = mmap.mmap(-1, WRITE_PAGES_MAX * PAGE)


def pages_of(first, end):
    """Some whole pages of [first, end)."""
    count = chance.randint(1, WRITE_PAGES_MAX)
    at = first + chance.randrange((end - first) // PAGE - count + 1) * PAGE
    return at, count * PAGE


def check(found, expected, at):
    if found != expected:
        wrong = next(index for index in range(len(expected)) if index >= len(found) or found[index] != expected[index])
        raise AssertionError(f"wrong byte at {at + wrong}")


def write_direct(file=direct, into=model):
    at, length = pages_of(0, half)
    buffer[:length] = chance.randbytes(length)
    view = memoryview(buffer)[:length]
    assert os.pwritev(file, [view], at) == length
    into[at:at + length] = buffer[:length]


def read_direct():
    at, length = pages_of(0, half)
    assert os.preadv(direct, [memoryview(buffer)[:length]], at) == length
    check(buffer[:length], model[at:at + length], at)


def write_buffered():
    at = half + chance.randrange(size - half - 20000)
    content = chance.randbytes(chance.randint(1, 20000))
    assert os.pwrite(buffered, content, at) == len(content)
    model[at:at + len(content)] = content


def read_buffered():
    at = half + chance.randrange(size - half - 20000)
    if chance.random() < 0.5:
        os.posix_fadvise(buffered, half, size - half, os.POSIX_FADV_DONTNEED)
    check(os.pread(buffered, 20000, at), model[at:at + 20000], at)


def write_alias():
    at = chance.randrange(size // 512) * 512
    content = chance.randbytes(512)
    assert os.pwrite(alias_file, content, at) == 512
    alias_model[at:at + 512] = content


def read_alias():
    at, length = pages_of(0, size)
    check(os.pread(alias_file, length, at), alias_model[at:at + length], at)


def look_around():
    assert "machine" in os.listdir(".")
    assert os.stat("machine").st_size == size
    assert os.stat(alias).st_ino == os.fstat(alias_file).st_ino == alias_number


def open_anew():
    again = os.open("machine", os.O_RDONLY)
    at, length = pages_of(half, size)
    check(os.pread(again, length, at), model[at:at + length], at)
    os.close(again)


operations = [write_direct, read_direct, write_buffered, read_buffered, write_alias, read_alias, look_around, open_anew, lambda: os.fsync(buffered)]
longest = 0.0
done = 0
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    before = time.monotonic()
    chance.choice(operations)()
    longest = max(longest, time.monotonic() - before)
    done += 1
    if done % 50 == 0:
        print(f"done {done}", flush=True)

os.fsync(buffered)
os.fsync(alias_file)
for path, expected in (("machine", model), (alias, alias_model)):
    with open(path, "rb") as file:
        check(file.read(), expected, 0)
print(f"done {done}\nlongest {longest * 1000:.0f}", flush=True)
