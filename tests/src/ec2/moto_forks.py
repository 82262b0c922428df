"""Servers of moto, each forked from this process, which has imported moto once.

Standard input is a Unix socket that listens. A caller connects to it, and sends with one byte two descriptors: a socket that
listens where EC2 should be, and a file for the server's log. The server is a child with a state of its own. The caller's
connection is its life: the child confirms its start with one byte, and ends when the caller closes the connection or dies.

This process ends by itself once it has had no child, and no caller, for some seconds.
"""

import array
import functools
import gc
import os
import select
import signal
import socket
import sys
import threading

IDLE_SECONDS = 20


def detach():
    """Leaves the caller's session and process group, so that this process outlives the first caller."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")


def warm():
    """Returns moto's application with the services imported and one call of each made, in the state of a fresh start."""
    # Half of the time of a first call in a Region is the thousand images of a catalogue that no test looks at.
    os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"
    from moto import backends
    from moto.core import responses
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.test import Client

    # moto makes both lists for each call, which is a third of what a call costs; neither ever changes.
    modules = list(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: modules
    responses.method_names_from_class = functools.cache(responses.method_names_from_class)

    app = DomainDispatcherApplication(create_backend_app)
    app.debug = True
    client = Client(app)
    calls = [
        ("ec2", {"Action": "DescribeVpcs", "Version": "2016-11-15"}),
        (
            "sts",
            {
                "Action": "AssumeRole",
                "Version": "2011-06-15",
                "RoleArn": "arn:aws:iam::123456789012:role/warm",
                "RoleSessionName": "warm",
            },
        ),
    ]
    for service, form in calls:
        credential = f"Credential=warm/20200101/us-east-1/{service}/aws4_request"
        headers = {"Authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0"}
        answer = client.post("/", data=form, headers=headers)
        assert answer.status_code == 200, answer.text
    answer = client.post("/moto-api/reset")
    assert answer.status_code == 200, answer.text
    assert threading.active_count() == 1, "a process with several threads must not fork"
    return app


def end_with(connection):
    """Ends this process when the caller is gone."""
    try:
        connection.recv(1)
    finally:
        os._exit(0)


def serve(app, connection, listener, log):
    """Serves moto on the caller's socket."""
    from moto.moto_api._internal import mock_random
    from moto.moto_server.werkzeug_app import MotoRequestHandler
    from werkzeug.serving import make_server

    os.dup2(log, 1)
    os.dup2(log, 2)
    # Children would draw the same identifiers from the parent's state.
    mock_random.seed()
    threading.Thread(target=end_with, args=(connection,), daemon=True).start()
    host, port = socket.socket(fileno=os.dup(listener)).getsockname()
    server = make_server(host, port, app, threaded=True, request_handler=MotoRequestHandler, fd=listener)
    connection.sendall(b"+")
    server.serve_forever()


def receive(connection):
    """Returns the two descriptors of a caller."""
    size = array.array("i").itemsize
    message, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_LEN(2 * size))
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % size])
    if not message or len(descriptors) != 2:
        raise ValueError("a caller sends a byte with two descriptors")
    return descriptors


def has_children():
    """Collects the children that have ended, and reports whether any is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    except ChildProcessError:
        return False


def main():
    calls = socket.socket(fileno=os.dup(0))
    detach()
    app = warm()
    # The collector would write into every page that the children share with this process.
    gc.collect()
    gc.freeze()
    while True:
        readable, _, _ = select.select([calls], [], [], IDLE_SECONDS)
        if not readable:
            if has_children():
                continue
            return
        connection, _ = calls.accept()
        try:
            connection.settimeout(5)
            listener, log = receive(connection)
        except (OSError, ValueError) as problem:
            print(f"a caller was not understood: {problem}", file=sys.stderr, flush=True)
            connection.close()
            continue
        connection.settimeout(None)
        if os.fork() == 0:
            calls.close()
            os.close(0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            serve(app, connection, listener, log)
            os._exit(0)
        connection.close()
        os.close(listener)
        os.close(log)
        has_children()


main()
