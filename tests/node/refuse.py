"""Runs a command whose system calls of one kind the kernel refuses, by a seccomp filter (seccomp(2)).

    refuse.py NUMBER ERRNO [ARGUMENT=VALUE]... -- COMMAND...

NUMBER is the system call's; with ARGUMENT=VALUE only calls whose argument of that index (0 to 5) is VALUE.
Only the standard library.
"""

import ctypes
import os
import struct
import sys

LOAD_WORD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06  # of classic BPF
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
SET_SECCOMP, MODE_FILTER = 22, 2  # prctl(2)

words = sys.argv[1 : sys.argv.index("--")]
command = sys.argv[sys.argv.index("--") + 1 :]
number, error = int(words[0]), int(words[1])
# struct seccomp_data: the number, the architecture, where from; then the arguments, 8 bytes each.
tests = [(0, number)] + [(16 + 8 * int(index), int(value)) for index, value in (word.split("=") for word in words[2:])]
rules = []
for left, (offset, value) in zip(range(len(tests), 0, -1), tests, strict=True):
    rules += [(LOAD_WORD, 0, 0, offset), (JUMP_EQUAL, 0, 2 * left - 1, value)]
rules += [(RETURN, 0, 0, ERRNO | error), (RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(rules), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(SET_SECCOMP, MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
    sys.exit(f"refuse.py: prctl: {os.strerror(ctypes.get_errno())}")
os.execvp(command[0], command)
