"""CLONE and COMMIT of a working copy from another language, as include/p2pvm.h and the extended attributes offer them.

    python3 control-primitives.py ioctl commit|clone PATH [NAME [MESSAGE]]
    python3 control-primitives.py get-attribute PATH ATTRIBUTE
    python3 control-primitives.py set-attribute PATH ATTRIBUTE VALUE

Prints one JSON document: for an ioctl {"blob", "version", "status"}, for get-attribute {"value"}, for set-attribute {}; when the
call fails, {"errno": NAME}.
"""

import errno
import fcntl
import json
import os
import struct
import sys

# struct p2pvm_commit {name, message, blob, version, status, reserved} and struct p2pvm_clone, which has no message.
LAYOUTS = {"commit": "=136s256s32sQiI", "clone": "=136s32sQiI"}
NUMBERS = {"commit": 1, "clone": 2}
MAGIC = 0xE9
READ_WRITE = 3


def request_code(verb):
    """_IOWR of asm-generic/ioctl.h."""
    return READ_WRITE << 30 | struct.calcsize(LAYOUTS[verb]) << 16 | MAGIC << 8 | NUMBERS[verb]


def ioctl(verb, path, name="", message=""):
    texts = [name.encode()] + ([message.encode()] if verb == "commit" else []) + [b""]
    argument = bytearray(struct.pack(LAYOUTS[verb], *texts, 0, 0, 0))
    file = os.open(path, os.O_RDWR)
    try:
        fcntl.ioctl(file, request_code(verb), argument, True)
    finally:
        os.close(file)
    *_, blob, version, status, _ = struct.unpack(LAYOUTS[verb], argument)
    return {"blob": blob.rstrip(b"\0").decode(), "version": version, "status": status}


def get_attribute(path, attribute):
    return {"value": os.getxattr(path, attribute).decode()}


def set_attribute(path, attribute, value):
    os.setxattr(path, attribute, value.encode())
    return {}


verbs = {"ioctl": ioctl, "get-attribute": get_attribute, "set-attribute": set_attribute}
try:
    print(json.dumps(verbs[sys.argv[1]](*sys.argv[2:])))
except OSError as error:
    print(json.dumps({"errno": errno.errorcode.get(error.errno, error.errno)}))
