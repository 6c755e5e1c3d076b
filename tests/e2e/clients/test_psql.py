"""psql, as Debian ships it: what people type, and what it asks by itself."""

import os
import subprocess
import unittest

import server

NEW_YEAR_NS = 1_767_225_600_000_000_000


def psql(*commands, database="psql", password=None):
    """Runs commands one after the other; what psql printed, and its exit status."""
    at = server.running()
    environment = dict(
        os.environ,
        PGPASSWORD=password or at.token,
        PGSSLMODE="verify-full",
        PGSSLROOTCERT=at.ca,
        PGCONNECT_TIMEOUT="20",
    )
    arguments = ["psql", "-X", "-h", "127.0.0.1", "-p", str(at.pg_port), "-U", "ann", "-d", database]
    for command in commands:
        arguments += ["-c", command]
    done = subprocess.run(
        arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=120
    )
    return done.stdout + done.stderr, done.returncode


def setUpModule():
    lines = [f"cpu,host=h{n % 4} n={n}i,usage={n}.5 {NEW_YEAR_NS + n * 10**9}" for n in range(100)]
    server.running().write("psql", "\n".join(lines))


class Psql(unittest.TestCase):
    def check(self, command, *expected):
        said, status = psql(command)
        self.assertEqual(status, 0, said)
        self.assertNotIn("ERROR", said)
        for text in expected:
            self.assertIn(text, said)

    def test_l1_rows(self):
        said, status = psql("SELECT host, count(*) AS n FROM cpu GROUP BY host ORDER BY host")
        self.assertEqual(status, 0, said)
        self.assertIn(" h3   | 25", said)
        self.assertIn("(4 rows)", said)

    def test_l1_what_is_there_is_listed(self):
        self.check("\\l", "psql", "UTF8", "ann")
        self.check("\\dt", "cpu", "table", "ann")
        self.check("\\d", "cpu")
        self.check("\\dn", "psql")
        self.check("\\du", "ann")

    def test_l1_a_table_is_described(self):
        self.check("\\d cpu", "timestamp with time zone", "not null", "double precision", "bigint")
        self.check("\\d+ cpu", "double precision")

    def test_transactions_and_settings_are_answered(self):
        said, status = psql("BEGIN", "SET extra_float_digits = 3", "SELECT 1 AS one", "COMMIT", "SHOW server_version")
        self.assertEqual(status, 0, said)
        for word in ("BEGIN", "SET", "COMMIT", "15.0"):
            self.assertIn(word, said)

    def test_several_statements_in_one_text(self):
        said, status = psql("SELECT 1 AS one; SELECT ';' AS semi; SELECT 3 AS three")
        self.assertEqual(status, 0, said)
        self.assertIn("three", said)

    def test_what_is_refused_says_why(self):
        said, status = psql("DROP TABLE cpu")
        self.assertNotEqual(status, 0)
        self.assertIn("not allowed", said)
        said, status = psql("SELECT 1", password="wrong")
        self.assertNotEqual(status, 0)
        self.assertIn("scope `read`", said)


if __name__ == "__main__":
    unittest.main()
