"""influxdb3-python, as published: writes over HTTP, queries over Arrow Flight."""

import unittest

from influxdb_client_3 import InfluxDBClient3, Point, WriteOptions, WritePrecision, write_client_options
from influxdb_client_3.exceptions import InfluxDBPartialWriteError

import server

NEW_YEAR_NS = 1_767_225_600_000_000_000


def client(database, token=None, **options):
    at = server.running()
    return InfluxDBClient3(
        host=at.url, token=token or at.token, database=database, ssl_ca_cert=at.ca, **options
    )


class InfluxDB3(unittest.TestCase):
    def test_l1_points_are_written_and_queried(self):
        with client("influx3") as db:
            for n in range(10):
                db.write(
                    Point("press")
                    .tag("line", f"l{n % 2}")
                    .field("temp", 20.5 + n)
                    .field("count", n)
                    .field("ok", True)
                    .field("state", "run")
                    .time(NEW_YEAR_NS + n, WritePrecision.NS)
                )
            table = db.query("SELECT line, temp, count, ok, state, time FROM press ORDER BY time")
            self.assertEqual(table.num_rows, 10)
            rows = table.drop_columns("time").to_pylist()
            self.assertEqual(rows[3]["temp"], 23.5)
            self.assertEqual(rows[3]["count"], 3)
            self.assertEqual(rows[3]["line"], "l1")
            self.assertEqual(str(table.schema.field("time").type), "timestamp[ns, tz=UTC]")

    def test_l1_line_protocol_in_batches_through_both_endpoints(self):
        lines = [f"wide,host=h{n} a={n}i,b={n}.5 {NEW_YEAR_NS + n}" for n in range(5000)]
        with client("batches", write_use_v2_api=False) as db:
            db.write(lines)
            answer = db.query("SELECT count(*) AS n, sum(a) AS s FROM wide").to_pylist()
            self.assertEqual(answer, [{"n": 5000, "s": 5000 * 4999 // 2}])
        with client("batches2", write_use_v2_api=True) as db:
            db.write(lines)
            self.assertEqual(db.query("SELECT count(*) AS n FROM wide").to_pylist(), [{"n": 5000}])

    def test_compressed_writes_are_taken(self):
        with client("zipped", enable_gzip=True) as db:
            db.write([f"z v={n}i {NEW_YEAR_NS + n}" for n in range(1000)])
            self.assertEqual(db.query("SELECT count(*) AS n FROM z").to_pylist(), [{"n": 1000}])

    def test_every_precision_means_what_it_says(self):
        seconds = NEW_YEAR_NS // 10**9
        for unit, factor in [("ns", 10**9), ("us", 10**6), ("ms", 10**3), ("s", 1)]:
            with client("precisions") as db:
                db.write(f"p_{unit} v=1 {seconds * factor}", write_precision=unit)
                answer = db.query(f"SELECT CAST(time AS BIGINT) AS t FROM p_{unit}").to_pylist()
                self.assertEqual(answer, [{"t": NEW_YEAR_NS}], unit)

    def test_d4_a_bad_line_raises_the_clients_own_error_and_the_rest_is_kept(self):
        with client("partial", write_use_v2_api=False) as db:
            with self.assertRaises(InfluxDBPartialWriteError) as caught:
                db.write(f"m v=1 {NEW_YEAR_NS}\nm v=oops {NEW_YEAR_NS}\nm v=3 {NEW_YEAR_NS + 1}")
            errors = caught.exception.line_errors
            self.assertEqual([e.line_number for e in errors], [2])
            self.assertIn("oops", errors[0].original_line)
            self.assertEqual(db.query("SELECT count(*) AS n FROM m").to_pylist(), [{"n": 2}])

    def test_d4_nothing_is_kept_when_partial_writes_are_declined(self):
        with client("whole", write_use_v2_api=False, write_accept_partial=False) as db:
            with self.assertRaises(InfluxDBPartialWriteError):
                db.write(f"m v=1 {NEW_YEAR_NS}\nm v=oops {NEW_YEAR_NS}")
            db.write(f"other v=1 {NEW_YEAR_NS}")
            listed = db.query("SHOW TABLES").to_pylist()
            tables = [r["table_name"] for r in listed if r["table_schema"] == "whole"]
            self.assertEqual(tables, ["other"])

    def test_parameters_are_bound(self):
        with client("bound") as db:
            db.write([f"cpu,host=h{n} v={n}i {NEW_YEAR_NS}" for n in range(5)])
            answer = db.query(
                "SELECT v FROM cpu WHERE host = $host", query_parameters={"host": "h3"}
            )
            self.assertEqual(answer.to_pylist(), [{"v": 3}])

    def test_batching_mode_delivers_everything(self):
        options = write_client_options(write_options=WriteOptions(batch_size=100, flush_interval=50))
        with client("batching", write_client_options=options) as db:
            for n in range(1234):
                db.write(f"b v={n}i {NEW_YEAR_NS + n}")
        with client("batching") as db:
            self.assertEqual(db.query("SELECT count(*) AS n FROM b").to_pylist(), [{"n": 1234}])

    def test_a3_wrong_tokens_and_scopes_are_refused(self):
        with client("refused", token="not-a-token") as db:
            with self.assertRaises(Exception):
                db.write("m v=1")
            with self.assertRaises(Exception):
                db.query("SELECT 1")
        with client("refused", token=server.running().read_token) as db:
            with self.assertRaises(Exception):
                db.write("m v=1")

    def test_the_version_is_told(self):
        with client("version") as db:
            self.assertRegex(db.get_server_version(), r"^\d+\.\d+\.\d+")


if __name__ == "__main__":
    unittest.main()
