"""Llama-4's chat template with the assistant's span marked, for trainers that take their labels from the template."""

from sft.errors import UserError

# What the published template writes of a turn, and where in it an answer and its end of turn begin and end. A turn of
# the assistant is written a second time, between the marks; every other turn as it stands.
_HEADER = "{{- '<|header_start|>' + message['role'] + '<|header_end|>\n\n' }}\n"
_END = "{{- \"<|eot|>\" }}\n    {%- elif 'tool_calls' in message"


def mark_assistant_span(template: str) -> str:
    """Put `{% generation %}` around each answer and its end of turn; what is rendered stays the same to the byte.

    This package makes its labels itself (`sft.batches.collator`); TRL's `assistant_only_loss` and transformers'
    `return_assistant_tokens_mask` read these marks.

    Raises:
        UserError: the template is not Llama-4's.
    """
    if template.count(_HEADER) != 1 or template.count(_END) != 1:
        raise UserError(
            "chat template: found one that is not Llama-4's as published; expected chat_template.jinja of it"
        )
    head, rest = template.split(_HEADER)
    body, tail = rest.split(_END)
    turn = body + '{{- "<|eot|>" }}\n'
    marked = (
        "{%- if message['role'] == 'assistant' %}{%- generation %}\n" + turn + "    {%- endgeneration %}\n"
        "    {%- else %}\n" + turn + "    {%- endif %}\n    {%- elif 'tool_calls' in message"
    )
    return head + _HEADER + marked + tail
