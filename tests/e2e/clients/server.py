"""Starts the real server for the client tests and makes a tenant with a token.

Owns: one server per test process, on a port of its own, with its data in a temporary folder.
Never: knows a client. The clients are used as published, with nothing but a URL, a token and the
file of the development CA.
"""

import atexit
import json
import os
import re
import shutil
import ssl
import subprocess
import tempfile
import threading
import urllib.request

_BIN = os.environ.get("MILLRACE_BIN", "millrace")


class Server:
    """A running server: `url`, `port`, `pg_port`, `token`, `ca` (path of the CA file)."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="millrace-clients-")
        self.data = os.path.join(self.folder, "data")
        self._admin("tenant", "create", "acme")
        self.token = self._token("write,read")
        self.read_token = self._token("read")
        self.process = subprocess.Popen(
            [_BIN, "serve", "--data-dir", self.data]
            + ["--listen", "127.0.0.1:0", "--pg-listen", "127.0.0.1:0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.url = self._wait_for_address()
        self.port = int(self.url.rsplit(":", 1)[1])
        self.ca = os.path.join(self.data, "tls", "ca.pem")
        # Whatever it says later must not fill the pipe.
        threading.Thread(target=self._drain, daemon=True).start()

    def _admin(self, *args):
        done = subprocess.run(
            [_BIN, *args, "--data-dir", self.data],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"millrace {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout

    def _token(self, scope):
        said = self._admin("token", "create", "--tenant", "acme", "--scope", scope, "--json")
        json.loads(said)
        return re.search(r"mrt_[A-Za-z0-9_-]+", said).group(0)

    def _wait_for_address(self):
        said = []
        for line in self.process.stdout:
            said.append(line)
            pg = re.search(r"PostgreSQL clients connect to 127\.0\.0\.1:(\d+)", line)
            if pg:
                self.pg_port = int(pg.group(1))
            found = re.search(r"https://127\.0\.0\.1:[1-9]\d*", line)
            if found:
                return found.group(0)
        raise RuntimeError("the server did not start:\n" + "".join(said))

    def _drain(self):
        for _ in self.process.stdout:
            pass

    def write(self, database, lines):
        """Writes line protocol with nanosecond times; all of it must be taken."""
        request = urllib.request.Request(
            f"{self.url}/api/v3/write_lp?db={database}&precision=nanosecond",
            data=lines.encode(),
            headers={"Authorization": f"Bearer {self.token}"},
        )
        trust = ssl.create_default_context(cafile=self.ca)
        with urllib.request.urlopen(request, context=trust) as answer:
            if answer.status != 204:
                raise RuntimeError(answer.read())

    def stop(self):
        """Ends the server and removes its folder."""
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


_running = None


def running():
    """The server of this test process, started on first use."""
    global _running
    if _running is None:
        _running = Server()
        atexit.register(_running.stop)
    return _running
