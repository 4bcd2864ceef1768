"""Tests of how runs become figures."""
import unittest

import report


def run(wall, **more):
    return {"wall": wall, "cpu": 1.0, "others_cores": 0.0, "others_cpu": 0.0, "command": ["build"], "round": 0, **more}


class Rows(unittest.TestCase):
    def test_the_median_of_rounds_of_which_the_first_compared_images(self):
        row = report.row("kiln", "", [run(1.0, entries=7, differences=0), run(5.0), run(2.0)])
        self.assertEqual((row["wall"], row["wall_min"], row["wall_max"], row["runs"]), (2.0, 1.0, 5.0, 3))
        self.assertNotIn("entries", row)

    def test_a_disturbed_run_is_left_out_where_there_are_quiet_ones(self):
        noisy = run(9.0, others_cores=0.5, others_cpu=4.0)
        row = report.row("kiln", "", [noisy, run(1.0)])
        self.assertEqual((row["wall"], row["left_out"], row["disturbed"]), (1.0, 1, False))
        self.assertTrue(report.row("kiln", "", [noisy])["disturbed"])

    def test_a_builder_that_always_failed_says_why(self):
        row = report.row("kiln", "", [{"failed": "exit 1\nmore"}, {"failed": "exit 2"}])
        self.assertEqual(row["why"], "failed: exit 1")


if __name__ == "__main__":
    unittest.main()
