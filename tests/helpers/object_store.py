"""An object store on loopback: moto's server speaks S3, a proxy before it stands for the network.

Requests come from s3fs itself, over sockets. What the proxy does to new requests is its `mode`:
    open    passes them on
    cut     closes every connection
    full    answers every PUT with 507, as a store does that has no space left
    mute    takes requests and never answers
`stall_at(n)`: the n-th PUT of a checkpoint's file from now stops half-way, and `stalled` is set.
"""

import os
import re
import socket
import threading
from contextlib import contextmanager

import pytest

BUCKET = "runs"
_REFUSAL = b"<Error><Code>XMinioStorageFull</Code><Message>no space is left</Message></Error>"
FULL = (
    b"HTTP/1.1 507 Insufficient Storage\r\nContent-Type: application/xml\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(_REFUSAL), _REFUSAL)
)


class Store:
    def __init__(self, port: int):
        self.port, self.mode = port, "open"
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.open: set[socket.socket] = set()
        self.stalled, self.until_stall = threading.Event(), 0
        self.requests: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def become(self, mode: str) -> None:
        """Connections that are kept alive end too."""
        self.mode = mode
        for one in list(self.open):
            _close(one)

    def stall_at(self, number: int) -> None:
        self.stalled.clear()
        self.until_stall = number

    def environment(self, key: str, secret: str) -> dict[str, str]:
        """Of a process that finds the store behind the proxy."""
        address = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        given = {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
        given |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        return os.environ | given | {"AWS_EC2_METADATA_DISABLED": "true"}

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One connection, request by request; answers go back as they come."""
        server = socket.create_connection(("127.0.0.1", self.port))
        self.open |= {client, server}
        threading.Thread(target=_pipe, args=(server, client), daemon=True).start()
        try:
            while head := _head(client):
                self._request(head, client, server)
        except OSError:
            pass
        finally:
            self.open -= {client, server}
            _close(client)
            _close(server)

    def _request(self, head: bytes, client: socket.socket, server: socket.socket) -> None:
        line = head.split(b"\r\n")[0].decode()
        self.requests.append(line)
        if self.mode == "cut":
            raise OSError("cut")
        if self.mode == "mute":
            while client.recv(2**16):  # until the client is gone
                pass
            raise OSError("mute")
        if self.mode == "full" and line.startswith("PUT"):
            client.sendall(FULL)
            raise OSError("full")
        found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        left = int(found[1]) if found else 0
        if left and b"100-continue" in head:  # answered here, so that the body can be counted
            head = re.sub(rb"(?i)\r\nexpect: *100-continue", b"", head)
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        server.sendall(head)
        stop = -1
        if line.startswith("PUT") and "/checkpoints/" in line and self.until_stall:
            self.until_stall -= 1
            stop = left // 2 if not self.until_stall else -1
        while left:
            data = client.recv(min(left, 2**16))
            if not data:
                raise OSError("closed")
            if 0 <= left - len(data) <= stop:
                server.sendall(data[: len(data) // 2])
                self.stalled.set()
                while client.recv(2**16):  # until the client is gone
                    pass
                raise OSError("stalled")
            server.sendall(data)
            left -= len(data)


def _head(client: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        if not byte:
            return b""
        data += byte
    return data


def _pipe(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(2**16):
            target.sendall(data)
    except OSError:
        pass
    _close(target)


def _close(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    one.close()


@contextmanager
def running_store():
    """A store with an empty bucket; skips where its packages are not installed."""
    for package in ("s3fs", "moto", "flask", "flask_cors"):
        pytest.importorskip(package, reason="needs the extra test-remote")
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    store = Store(port)
    try:
        client(store).create_bucket(Bucket=BUCKET)
        yield store
    finally:
        store.listening.close()
        store.become("cut")
        moto.stop()


def client(store: Store, service: str = "s3"):
    """Beside the proxy: what the test itself looks at."""
    import boto3

    return boto3.client(
        service,
        endpoint_url=f"http://127.0.0.1:{store.port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


def names(store: Store, prefix: str) -> list[str]:
    listed = client(store).list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return [entry["Key"].removeprefix(prefix) for entry in listed]
