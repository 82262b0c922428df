#!/usr/bin/env python3
"""Connects to one TCP port again and again, and writes what came of each attempt.

    prober.py ADDRESS PORT LOG

An attempt begins every 20 ms. It is `open` if the connection is made, `refused` if a reset comes back (no program listens, and no firewall
stood in the way), and `shut` if nothing comes back within 400 ms. Each line of LOG has the time of the attempt in seconds since 1970, and
the outcome.
"""

import errno
import selectors
import socket
import sys
import time

EVERY = 0.02
PATIENCE = 0.4


def main():
    address, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    waiting = {}
    selector = selectors.DefaultSelector()
    with open(path, "a", buffering=1, encoding="ascii") as log:

        def end(sock, outcome):
            began = waiting.pop(sock)
            selector.unregister(sock)
            sock.close()
            log.write(f"{began:.3f} {outcome}\n")

        due = time.time()
        while True:
            now = time.time()
            if now >= due:
                due = now + EVERY
                sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                sock.setblocking(False)
                code = sock.connect_ex((address, port))
                if code in (0, errno.EINPROGRESS):
                    waiting[sock] = now
                    selector.register(sock, selectors.EVENT_WRITE)
                else:
                    # The network is down: nothing of this attempt has left.
                    log.write(f"{now:.3f} unsent\n")
                    sock.close()
            for key, _ in selector.select(max(0, due - time.time())):
                code = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                outcomes = {0: "open", errno.ECONNREFUSED: "refused", errno.ECONNRESET: "refused"}
                end(key.fileobj, outcomes.get(code, "shut"))
            for sock in [sock for sock, began in waiting.items() if time.time() - began > PATIENCE]:
                end(sock, "shut")


main()
