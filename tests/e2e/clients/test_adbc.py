"""adbc-driver-flightsql, as published: SQL over Arrow Flight SQL."""

import datetime
import unittest

import adbc_driver_flightsql.dbapi
import adbc_driver_manager
from adbc_driver_flightsql import DatabaseOptions

import server

NEW_YEAR_NS = 1_767_225_600_000_000_000
UTC = datetime.timezone.utc


def connect(token=None, password=None, database=None):
    at = server.running()
    with open(at.ca) as file:
        options = {DatabaseOptions.TLS_ROOT_CERTS.value: file.read()}
    if password is None:
        options[DatabaseOptions.AUTHORIZATION_HEADER.value] = f"Bearer {token or at.token}"
    else:
        options["username"] = "any"
        options["password"] = password
    if database:
        options[f"{DatabaseOptions.RPC_CALL_HEADER_PREFIX.value}database"] = database
    return adbc_driver_flightsql.dbapi.connect(
        f"grpc+tls://127.0.0.1:{at.port}", db_kwargs=options, autocommit=True
    )


def setUpModule():
    lines = [f"cpu,host=h{n % 4} n={n}i,usage={n}.5 {NEW_YEAR_NS + n * 10**9}" for n in range(100)]
    server.running().write("adbc", "\n".join(lines))


class Adbc(unittest.TestCase):
    def test_l1_a_query_becomes_a_table(self):
        with connect(database="adbc") as db, db.cursor() as cursor:
            cursor.execute("SELECT host, count(*) AS n, max(time) AS t FROM cpu GROUP BY host ORDER BY host")
            table = cursor.fetch_arrow_table()
            self.assertEqual(table.column("host").to_pylist(), ["h0", "h1", "h2", "h3"])
            self.assertEqual(table.column("n").to_pylist(), [25] * 4)
            self.assertEqual(str(table.schema.field("t").type), "timestamp[ns, tz=UTC]")

    def test_l1_rows_of_the_dbapi(self):
        with connect(database="adbc") as db, db.cursor() as cursor:
            cursor.execute("SELECT n, usage FROM cpu ORDER BY time LIMIT 2")
            self.assertEqual(cursor.fetchall(), [(0, 0.5), (1, 1.5)])

    def test_l1_parameters_are_bound(self):
        with connect(database="adbc") as db, db.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM cpu WHERE host = $1 AND n >= $2", ("h1", 50))
            self.assertEqual(cursor.fetchone(), (12,))
            start = datetime.datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
            cursor.execute("SELECT count(*) FROM cpu WHERE time >= $1", (start,))
            self.assertEqual(cursor.fetchone(), (40,))
            cursor.execute("SELECT count(*) FROM cpu WHERE host = $1", ("h1' OR 1=1 --",))
            self.assertEqual(cursor.fetchone(), (0,))

    def test_l1_objects_are_listed_with_their_columns(self):
        with connect(database="adbc") as db:
            found = db.adbc_get_objects(
                catalog_filter="millrace", db_schema_filter="adbc", depth="columns"
            ).read_all()
            schemas = found.to_pylist()[0]["catalog_db_schemas"]
            tables = {t["table_name"]: t for s in schemas for t in s["db_schema_tables"]}
            columns = [c["column_name"] for c in tables["cpu"]["table_columns"]]
            self.assertEqual(columns, ["host", "time", "n", "usage"])
            self.assertIn("TABLE", db.adbc_get_table_types())
            self.assertEqual(db.adbc_get_info()["vendor_name"], "Millrace")
            schema = db.adbc_get_table_schema("cpu", db_schema_filter="adbc")
            self.assertEqual(schema.names, ["host", "time", "n", "usage"])

    def test_a3_a_token_is_taken_as_password_and_a_wrong_one_is_not(self):
        with connect(password=server.running().token) as db, db.cursor() as cursor:
            cursor.execute("SELECT 1 AS one")
            self.assertEqual(cursor.fetchone(), (1,))
        with self.assertRaises(adbc_driver_manager.Error):
            with connect(password="wrong") as db, db.cursor() as cursor:
                cursor.execute("SELECT 1")

    def test_errors_say_the_code(self):
        with connect(database="adbc") as db, db.cursor() as cursor:
            with self.assertRaisesRegex(adbc_driver_manager.Error, "sql_unknown_name"):
                cursor.execute("SELECT nothing FROM cpu")
            with self.assertRaisesRegex(adbc_driver_manager.Error, "sql_not_allowed"):
                cursor.execute("DROP TABLE cpu")


if __name__ == "__main__":
    unittest.main()
