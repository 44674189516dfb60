"""A rate with its interval: how it is written, and what is read back from a file."""

import json

from sft.rates import Rate, read_rate


def test_rate_is_written_in_percent_with_its_interval():
    assert Rate(0.7136, 0.68, 0.749).format() == "71.4 [68.0, 74.9]"
    assert Rate(0, 0, 0.154).format() == "0.0 [0.0, 15.4]"


def test_difference_has_its_sign():
    assert Rate(0.1, -0.02, 0.2).format(signed=True) == "+10.0 [-2.0, +20.0]"
    assert read_rate({"value": 0, "low": 0, "high": 0.05}).format(signed=True) == "+0.0 [+0.0, +5.0]"


def test_rate_is_read_back_as_it_was_written():
    rate = Rate(0.5, 0.4, 0.6)
    assert read_rate(json.loads(json.dumps(rate, default=Rate.as_json))) == rate


def test_baseline_is_a_rate_whose_value_is_its_swa():
    assert read_rate({"action": "CLICK", "swa": 0.5, "low": 0.4, "high": 0.6}) == Rate(0.5, 0.4, 0.6)
