# python3 include/examples/commit.py /mnt/images/working/vm1 [NAME]
import fcntl, struct, sys

STRUCT = struct.Struct("=136s256s32sQiI")  # struct p2pvm_commit: name, message; blob, version, status, reserved
P2PVM_IOC_COMMIT = 3 << 30 | STRUCT.size << 16 | 0xE9 << 8 | 1

name = sys.argv[2].encode() if len(sys.argv) > 2 else b""
commit = bytearray(STRUCT.pack(name, b"from Python", b"", 0, 0, 0))
with open(sys.argv[1], "rb") as file:
    fcntl.ioctl(file, P2PVM_IOC_COMMIT, commit)
_, _, blob, version, _, _ = STRUCT.unpack(commit)
print(f"{blob.rstrip(bytes(1)).decode()}@{version}")
