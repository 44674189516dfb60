"""Loss weights map to the answer's JSON fields, token by token."""

from sft.batches.encoder import find_field_spans, weigh_tokens

ANSWER = '{"action":"TEXT","target":"Name, \\"x\\"","text":"A","short_term":{"last":"a,b"},"long_term":{}}'


def test_each_key_and_value_belongs_to_its_field():
    assert [(ANSWER[start:end], field) for start, end, field in find_field_spans(ANSWER)] == [
        ('"action":"TEXT"', "action"),
        ('"target":"Name, \\"x\\""', "target"),
        ('"text":"A"', "target"),
        ('"short_term":{"last":"a,b"}', "memory"),
        ('"long_term":{}', "memory"),
    ]


def test_a_token_has_the_weight_of_the_field_it_begins_in():
    answer = '{"action":"CLICK","target":"A","short_term":{}}'
    offsets = [(0, 1), (1, 10), (10, 17), (17, 18), (18, 27), (27, 30), (30, 31), (31, 46), (46, 47)]
    weights = {"action": 2.0, "memory": 0.3}
    assert weigh_tokens(answer, offsets, weights) == [1.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.3, 1.0]


def test_no_weights_leave_every_token_at_one():
    assert set(weigh_tokens(ANSWER, [(i, i + 1) for i in range(len(ANSWER))], {})) == {1.0}
