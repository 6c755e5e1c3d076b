"""psycopg 3, as published: SQL over PostgreSQL's wire protocol."""

import datetime
import decimal
import threading
import unittest

import psycopg

import server

NEW_YEAR_NS = 1_767_225_600_000_000_000
NEW_YEAR = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)


def connect(password=None, database="psycopg", **options):
    at = server.running()
    return psycopg.connect(
        host="127.0.0.1",
        port=at.pg_port,
        user="ann",
        password=password or at.token,
        dbname=database,
        sslmode=options.pop("sslmode", "verify-full"),
        sslrootcert=at.ca,
        **options,
    )


def setUpModule():
    lines = [
        f"cpu,host=h{n % 4} n={n}i,u={2**63 + n}u,usage={n}.5,up={n % 2 == 0},note=\"n {n}\" {NEW_YEAR_NS + n * 10**9}"
        for n in range(100)
    ]
    lines.append(f"cpu,host=odd n=7i {NEW_YEAR_NS + 1999}")
    server.running().write("psycopg", "\n".join(lines))
    server.running().write("pgother", f"press,line=a force=7.5 {NEW_YEAR_NS}")


class Psycopg(unittest.TestCase):
    def test_l1_every_type_comes_in_text_and_in_binary(self):
        sql = "SELECT host, n, u, usage, up, note, time FROM cpu WHERE n = 1"
        expected = ("h1", 1, decimal.Decimal(2**63 + 1), 1.5, False, "n 1")
        for binary in (False, True):
            with connect() as db, db.cursor(binary=binary) as cursor:
                row = cursor.execute(sql).fetchone()
                self.assertEqual(row[:6], expected, binary)
                self.assertEqual(row[6], NEW_YEAR + datetime.timedelta(seconds=1))
                names = [c.name for c in cursor.description]
                self.assertEqual(names, ["host", "n", "u", "usage", "up", "note", "time"])
                codes = [c.type_code for c in cursor.description]
                self.assertEqual(codes, [25, 20, 1700, 701, 16, 25, 1184])

    def test_l1_times_are_rounded_down_to_microseconds_and_nulls_are_none(self):
        with connect() as db:
            row = db.execute("SELECT time, usage, note FROM cpu WHERE host = 'odd'").fetchone()
            self.assertEqual(row, (NEW_YEAR + datetime.timedelta(microseconds=1), None, None))

    def test_l1_parameters_are_bound(self):
        with connect() as db:
            sql = "SELECT count(*) FROM cpu WHERE host = %s AND n >= %s AND time >= %s AND up = %s"
            self.assertEqual(db.execute(sql, ("h0", 50, NEW_YEAR, True)).fetchone(), (12,))
            sql = "SELECT count(*) FROM cpu WHERE host = %s"
            self.assertEqual(db.execute(sql, ("h0' OR 1=1 --",)).fetchone(), (0,))
            sql = "SELECT count(*) FROM cpu WHERE usage > %s AND n < %b"
            self.assertEqual(db.execute(sql, (10.5, 50)).fetchone(), (39,))
            with self.assertRaises(psycopg.Error):
                db.execute("SELECT count(*) FROM cpu WHERE n = %s", ("not a number",))

    def test_statements_are_prepared_and_used_again(self):
        with connect() as db:
            for n in range(20):
                sql = "SELECT usage FROM cpu WHERE n = %s AND host <> 'odd'"
                row = db.execute(sql, (n,), prepare=True).fetchone()
                self.assertEqual(row, (n + 0.5,))

    def test_many_rows_stream(self):
        with connect() as db, db.cursor() as cursor:
            seen = 0
            for (value,) in cursor.stream("SELECT value FROM generate_series(1, 100000)"):
                seen += 1
            self.assertEqual((seen, value), (100000, 100000))

    def test_transactions_are_answered_and_an_error_spoils_one(self):
        with connect() as db:
            with db.transaction():
                db.execute("SELECT 1")
            with self.assertRaises(psycopg.errors.UndefinedTable):
                db.execute("SELECT * FROM nowhere")
            with self.assertRaises(psycopg.errors.InFailedSqlTransaction):
                db.execute("SELECT 1")
            db.rollback()
            self.assertEqual(db.execute("SELECT 1").fetchone(), (1,))

    def test_errors_have_their_states(self):
        with connect(autocommit=True) as db:
            for sql, error in [
                ("SELEC 1", psycopg.errors.SyntaxError),
                ("SELECT nothing FROM cpu", psycopg.errors.UndefinedColumn),
                ("SELECT nothing(1)", psycopg.errors.UndefinedFunction),
                ("DROP TABLE cpu", psycopg.errors.FeatureNotSupported),
                ("INSERT INTO cpu VALUES (1)", psycopg.errors.FeatureNotSupported),
            ]:
                with self.assertRaises(error, msg=sql) as caught:
                    db.execute(sql)
                self.assertIn("code sql_", caught.exception.diag.message_detail)
            with self.assertRaises(psycopg.errors.FeatureNotSupported):
                with db.cursor().copy("COPY cpu TO STDOUT") as copy:
                    list(copy)
            self.assertEqual(db.execute("SELECT count(*) FROM cpu").fetchone(), (101,))

    def test_a_running_statement_is_cancelled(self):
        with connect(autocommit=True) as db:
            timer = threading.Timer(0.5, db.cancel)
            timer.start()
            with self.assertRaises(psycopg.errors.QueryCanceled):
                db.execute("SELECT count(*) FROM generate_series(1, 1000000000000)")
            timer.join()
            self.assertEqual(db.execute("SELECT 1").fetchone(), (1,))

    def test_the_database_is_the_schema_and_others_are_named(self):
        with connect() as db:
            row = db.execute("SELECT current_database(), current_schema(), current_user").fetchone()
            self.assertEqual(row, ("psycopg", "psycopg", "ann"))
            self.assertEqual(db.execute("SELECT force FROM pgother.press").fetchone(), (7.5,))
        with connect(database="pgother") as db:
            self.assertEqual(db.execute("SELECT force FROM press").fetchone(), (7.5,))

    def test_e2_nothing_is_said_without_tls(self):
        with self.assertRaisesRegex(psycopg.OperationalError, "TLS is needed"):
            connect(sslmode="disable")

    def test_a3_a_wrong_token_is_refused(self):
        with self.assertRaisesRegex(psycopg.OperationalError, "scope `read`"):
            connect(password="wrong")


if __name__ == "__main__":
    unittest.main()
