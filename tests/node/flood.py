"""A peer that does not stop: asks the control socket for one kind of refusal again and again, until it is suspended.

Usage: flood.py SOCKET KIND. Runs under the uid it is started with; prints "begun" when it has been refused once, and
"suspended" when a connection is answered so. Ends then, or when its parent ends it.
"""

import contextlib
import sys
import time

from control import HEADER, REQUEST, SIGNED_REQUEST, Control, encode

PIPELINE = 64  # requests that are sent before the first is answered; as many as a connection may have
CONNECTIONS = 4
PAUSE_S = 0.05  # from one to the next: five times the rate, and the machine is for others, too


def frame(kind: int, content: bytes, number: int) -> bytes:
    return HEADER.pack(b"HLDF", 1, kind, 0, len(content), number) + content


def request(verb: str, **args: object) -> bytes:
    return encode({"verb": verb, "args": args})


CONTENTS = {
    "rate": (REQUEST, request("session.challenge")),  # right, and too often
    "frame": (REQUEST, b"\xff"),
    "signature": (SIGNED_REQUEST, b"\xff"),
    "proof": (REQUEST, request("session.bearer", token="hf_prod_" + "A" * 43)),
    "authority": (REQUEST, request("status")),
    "token": (REQUEST, request("lease.grant", token=b"\x84" + bytes(99))),
}


def main() -> None:
    path, kind = sys.argv[1:]
    type_, content = CONTENTS[kind]
    pipeline = b"".join(frame(type_, content, number) for number in range(1, PIPELINE + 1))
    begun = False
    while True:
        # A connection that is lost is made anew, and then says why, instead of a hello.
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            peers = [stack.enter_context(Control(path)) for _ in range(CONNECTIONS)]
            for _ in range(20):
                begin = time.monotonic()
                for peer in peers:
                    peer.socket.sendall(pipeline)
                for peer in peers:
                    for _ in range(PIPELINE):
                        answer = peer.read_frame()[3]
                        if not begun and "code" in answer:
                            begun = True
                            print("begun", flush=True)
                time.sleep(max(0.0, begin + PAUSE_S - time.monotonic()))
        with contextlib.suppress(OSError), Control(path) as asked:
            if asked.hello.get("code") == "suspended":
                print("suspended", flush=True)
                return


if __name__ == "__main__":
    main()
