"""influxdb-client (the client of InfluxDB 2), as published: writes."""

import json
import ssl
import unittest
import urllib.parse
import urllib.request

from influxdb_client import InfluxDBClient, Point, WritePrecision
from influxdb_client.client.write_api import SYNCHRONOUS, WriteOptions
from influxdb_client.rest import ApiException

import server

NEW_YEAR_NS = 1_767_225_600_000_000_000


def client(**options):
    at = server.running()
    return InfluxDBClient(
        url=at.url, token=options.pop("token", at.token), org="any", ssl_ca_cert=at.ca, **options
    )


def sql(database, question):
    """Asks over plain HTTP, because this client cannot ask in SQL."""
    at = server.running()
    query = urllib.parse.urlencode({"db": database, "q": question, "format": "json"})
    request = urllib.request.Request(
        f"{at.url}/api/v3/query_sql?{query}", headers={"Authorization": f"Bearer {at.token}"}
    )
    trust = ssl.create_default_context(cafile=at.ca)
    with urllib.request.urlopen(request, context=trust) as answer:
        return json.load(answer)


class InfluxDB2(unittest.TestCase):
    def test_l1_points_are_written(self):
        with client() as db, db.write_api(write_options=SYNCHRONOUS) as write:
            points = [
                Point("press").tag("line", "a").field("temp", 1.5 * n).time(NEW_YEAR_NS + n, WritePrecision.NS)
                for n in range(100)
            ]
            write.write(bucket="v2points", record=points)
        self.assertEqual(sql("v2points", "SELECT count(*) AS n FROM press"), [{"n": 100}])

    def test_batches_and_gzip(self):
        with client(enable_gzip=True) as db:
            with db.write_api(write_options=WriteOptions(batch_size=500, flush_interval=100)) as write:
                for n in range(2000):
                    write.write(bucket="v2batches", record=f"m v={n}i {NEW_YEAR_NS + n}")
        self.assertEqual(sql("v2batches", "SELECT count(*) AS n FROM m"), [{"n": 2000}])

    def test_every_precision(self):
        with client() as db, db.write_api(write_options=SYNCHRONOUS) as write:
            for unit, factor in [("ns", 10**9), ("us", 10**6), ("ms", 10**3), ("s", 1)]:
                write.write(
                    bucket="v2precision",
                    record=f"p_{unit} v=1 {NEW_YEAR_NS // 10**9 * factor}",
                    write_precision=unit,
                )
                answer = sql("v2precision", f"SELECT CAST(time AS BIGINT) AS t FROM p_{unit}")
                self.assertEqual(answer, [{"t": NEW_YEAR_NS}], unit)

    def test_d4_a_bad_line_raises_with_its_number(self):
        with client() as db, db.write_api(write_options=SYNCHRONOUS) as write:
            with self.assertRaises(ApiException) as caught:
                write.write(bucket="v2partial", record=f"m v=1 {NEW_YEAR_NS}\nm v=oops {NEW_YEAR_NS}")
            self.assertEqual(caught.exception.status, 400)
            self.assertIn("line 2", json.loads(caught.exception.body)["message"])
        self.assertEqual(sql("v2partial", "SELECT count(*) AS n FROM m"), [{"n": 1}])

    def test_a3_a_wrong_token_is_refused(self):
        with client(token="not-a-token") as db, db.write_api(write_options=SYNCHRONOUS) as write:
            with self.assertRaises(ApiException) as caught:
                write.write(bucket="v2refused", record="m v=1")
            self.assertEqual(caught.exception.status, 401)

    def test_the_server_says_that_it_is_well(self):
        with client() as db:
            self.assertTrue(db.ping())


if __name__ == "__main__":
    unittest.main()
