"""Small real servers and clients that the lab runs inside a namespace, one process for each.

    servers.py serve tcp:8080 udp:9000 page:80 http:81    echo, echo, a web page, an endless download; prints "ready";
                     patient:81                      the same download, never given up
    servers.py probe ADDRESS PORT PACKETS_PER_S      UDP echo client; prints its tally as JSON on SIGTERM

Only the standard library; they end with SIGTERM and leave nothing behind.
"""

import json
import select
import signal
import socket
import struct
import sys
import threading
import time

DOWNLOAD_BYTES_PER_S = 40_000_000  # enough to call it a download, little enough to leave the machine usable
DOWNLOAD_CHUNK = 64 * 1024
GIVE_UP_MS = 2000
SO_RCVBUFFORCE = 33  # socket(7); above the sysctl's limit, with CAP_NET_ADMIN
STRAGGLERS_S = 5.0  # how long the prober waits for the last answers; only a failure takes that long
# What a prober that was kept waiting makes up for at once. More of them would overflow the queues on their way (the
# kernel's backlog takes 1000), and what is lost there would look like what a lease's end dropped.
BURST = 32
QUEUE_BYTES = 1 << 24  # a receiver that is kept waiting loses nothing for seconds


def listen(kind: int, port: int) -> socket.socket:
    """A socket on every address of both families."""
    server = socket.socket(socket.AF_INET6, kind)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        server.listen(64)
    else:
        server.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, QUEUE_BYTES)
    return server


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def download(connection: socket.socket) -> None:
    """Answers any request with a body that does not end."""
    connection.recv(4096)
    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n")
    chunk = bytes(DOWNLOAD_CHUNK)
    begin, sent = time.monotonic(), 0
    while True:
        connection.sendall(chunk)
        sent += len(chunk)
        ahead_s = sent / DOWNLOAD_BYTES_PER_S - (time.monotonic() - begin)
        if ahead_s > 0:
            time.sleep(ahead_s)


def page(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")


def accept_for_ever(server: socket.socket, session, give_up_ms: int) -> None:
    def guarded(connection: socket.socket) -> None:
        try:
            with connection:
                session(connection)
        except OSError:
            pass  # the peer went away, which is what the tests are about

    while True:
        connection, _ = server.accept()
        # What a lease's end cut off is given up soon, and not sent again into another test's counts.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, give_up_ms)
        threading.Thread(target=guarded, args=(connection,), daemon=True).start()


def answer_for_ever(server: socket.socket) -> None:
    while True:
        try:
            data, peer = server.recvfrom(65536)
            server.sendto(data, peer)
        except OSError:
            pass  # an ICMP error about an earlier answer


def serve(services: list[str]) -> None:
    for service in services:
        kind, port = service.split(":")
        if kind == "udp":
            arguments = (listen(socket.SOCK_DGRAM, int(port)),)
            threading.Thread(target=answer_for_ever, args=arguments, daemon=True).start()
        else:
            session = {"tcp": echo, "http": download, "patient": download, "page": page}[kind]
            give_up_ms = 0 if kind == "patient" else GIVE_UP_MS  # 0: the kernel's own quarter of an hour
            arguments = (listen(socket.SOCK_STREAM, int(port)), session, give_up_ms)
            threading.Thread(target=accept_for_ever, args=arguments, daemon=True).start()
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


def probe(address: str, port: int, packets_per_s: int) -> None:
    """Sends numbered datagrams at a steady rate and notes which came back, until SIGTERM."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    client = socket.socket(family, socket.SOCK_DGRAM)
    client.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, QUEUE_BYTES)
    client.connect((address, port))
    client.setblocking(False)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    answered: set[int] = set()
    sent = refused = 0

    def drain(timeout_s: float) -> None:
        nonlocal refused
        while select.select([client], [], [], timeout_s)[0]:
            timeout_s = 0
            try:
                while True:
                    answered.add(struct.unpack("!Q", client.recv(64)[:8])[0])
            except BlockingIOError:
                pass
            except OSError:
                refused += 1

    print("ready", flush=True)
    begin = time.monotonic()
    while not ended.is_set():
        due = int((time.monotonic() - begin) * packets_per_s)
        if due > sent + BURST:
            begin += (due - sent - BURST) / packets_per_s
            due = sent + BURST
        while sent < due:
            try:
                client.send(struct.pack("!Q", sent))
            except OSError:
                refused += 1
            sent += 1
        drain(1 / packets_per_s)
    end = time.monotonic() + STRAGGLERS_S
    while len(answered) < sent and time.monotonic() < end:
        drain(0.05)
    lost = sorted(set(range(sent)) - answered)
    print(json.dumps({"sent": sent, "answered": len(answered), "refused": refused, "lost": lost[:1000]}), flush=True)


def main() -> None:
    # Blocked here, so that no thread takes them: serve() waits for them, probe() handles them.
    mode, *arguments = sys.argv[1:]
    if mode == "serve":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        serve(arguments)
    elif mode == "probe":
        probe(arguments[0], int(arguments[1]), int(arguments[2]))
    else:
        sys.exit(f"servers.py: no mode {mode!r}; there are serve and probe")


main()
