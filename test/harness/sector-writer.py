"""Writes numbered sectors with O_DIRECT, each process its own sectors of pages that it shares with others.

    python3 sector-writer.py PATH PAGES WRITERS WRITER SEED

Sector w of a page belongs to writer w % WRITERS. Each write goes to a sector of ours by chance, half of them in the first few pages,
and holds the number of the write and the writer, 64 bits each, little endian, 32 times. What was written is read back now and then, and
all of it when stdin closes; then "end WRITES SECTOR:WRITE ..." says what is last in each sector. Fails when a sector holds anything else.
"""

import mmap
import os
import random
import select
import struct
import sys

SECTOR_BYTES = 512
SECTORS_PER_PAGE = 8
HOT_PAGES = 4

path = sys.argv[1]
pages, writers, writer = (int(text) for text in sys.argv[2:5])
chance = random.Random(sys.argv[5])
file = os.open(path, os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)  # aligned to a page, as O_DIRECT asks
ours = [page * SECTORS_PER_PAGE + at for page in range(pages) for at in range(SECTORS_PER_PAGE) if at % writers == writer]
hot = ours[:HOT_PAGES * SECTORS_PER_PAGE // writers]
last = {}
number = 0


def sector_of(write):
    return struct.pack("<QQ", write, writer) * (SECTOR_BYTES // 16)


def check(sector):
    os.preadv(file, [memoryview(buffer)[:SECTOR_BYTES]], sector * SECTOR_BYTES)
    if buffer[:SECTOR_BYTES] != sector_of(last[sector]):
        sys.exit(f"wrong: sector {sector} does not hold write {last[sector]} of writer {writer}")


while not select.select([sys.stdin], [], [], 0)[0]:
    sector = chance.choice(ours if chance.random() < 0.5 else hot)
    number += 1
    buffer[:SECTOR_BYTES] = sector_of(number)
    if os.pwritev(file, [memoryview(buffer)[:SECTOR_BYTES]], sector * SECTOR_BYTES) != SECTOR_BYTES:
        sys.exit("a short write")
    last[sector] = number
    if number % 16 == 0:
        check(chance.choice(list(last)))
for sector in last:
    check(sector)
print("end", number, " ".join(f"{sector}:{write}" for sector, write in last.items()), flush=True)
