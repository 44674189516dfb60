"""The chat template is found where transformers finds it, and one that does not write a whole prompt is refused."""

import json
import shutil

import pytest
from conftest import ROOT
from trajectory_samples import TINY_AGENT, build_tasks, write_trajectories
from transformers import AutoTokenizer
from transformers import Qwen3VLProcessor as OfficialProcessor

from demo.tiny_qwen3vl import CHAT_TEMPLATE
from sft.batches.encoder import StepEncoder
from sft.check import __main__ as check
from sft.errors import UserError
from sft.memory import EMPTY_MEMORY
from sft.models.chat_template import read_chat_template
from sft.models.processors import load_processor


def open_folder(folder):
    return load_processor(folder, TINY_AGENT.min_pixels, TINY_AGENT.max_pixels)


TURN = "{%- for m in messages %}{{- '<|im_start|>' ~ m.role ~ '\n' }}"
END = "{{- '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
PARTS = "{%- for part in m.content %}{%- if part.type == 'text' %}{{- part.text }}{%- endif %}{%- endfor %}"
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
OF_USER = "{%- if m.role == 'user' %}{{- '" + PICTURE + "' }}{%- endif %}"
FIRST = "{{- '" + PICTURE + "' }}"


@pytest.fixture
def folder(tiny_checkpoints, tmp_path):
    """A folder without any template."""
    folder = shutil.copytree(tiny_checkpoints["qwen3_vl"], tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    return folder


def _mark(name):
    """Return a template that works, and bears a name."""
    return CHAT_TEMPLATE + "{# " + name + " #}"


def _add(folder, name, value):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jinja":
        path.write_text(value)
        return
    fields = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**fields, "chat_template": value}))


def _read_as_transformers(folder):
    fields, _ = OfficialProcessor.get_processor_dict(folder)
    template = fields.get("chat_template") or AutoTokenizer.from_pretrained(folder).chat_template
    return template["default"] if isinstance(template, dict) else template


IN_FILES = {
    "processor_config.json": _mark("processor"),
    "chat_template.json": _mark("json"),
    "chat_template.jinja": _mark("jinja"),
    "tokenizer_config.json": _mark("tokenizer"),
}


@pytest.mark.parametrize("first", range(4))
def test_template_is_taken_from_the_files_in_transformers_order(folder, first):
    names = list(IN_FILES)[first:]
    for name in names:
        _add(folder, name, IN_FILES[name])
    assert read_chat_template(folder) == _read_as_transformers(folder) == IN_FILES[names[0]]
    assert open_folder(folder).chat_template == IN_FILES[names[0]]


@pytest.mark.parametrize(
    "value",
    [
        [{"name": "tool_use", "template": "no"}, {"name": "default", "template": _mark("default")}],
        {"default": _mark("default"), "rag": "no"},
    ],
    ids=["list", "mapping"],
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "processor_config.json"])
def test_of_several_templates_the_default_is_taken(folder, name, value):
    if (name, type(value)) == ("tokenizer_config.json", list):
        _add(folder, name, value)
        assert _read_as_transformers(folder) == _mark("default")
    _add(folder, name, value)
    assert read_chat_template(folder) == _mark("default")


def test_templates_in_a_folder_of_their_own_do_not_replace_the_default(folder):
    _add(folder, "additional_chat_templates/tool_use.jinja", _mark("tools"))
    with pytest.raises(UserError, match="found chat templates named tool_use; expected one that is the default"):
        read_chat_template(folder)
    _add(folder, "chat_template.jinja", _mark("jinja"))
    assert read_chat_template(folder) == _read_as_transformers(folder) == _mark("jinja")
    (folder / "chat_template.jinja").rename(folder / "additional_chat_templates/default.jinja")
    assert read_chat_template(folder) == _read_as_transformers(folder) == _mark("jinja")


@pytest.mark.parametrize("value", [["no", "names"], [{"name": "rag", "template": "x"}], 7])
def test_what_is_no_template_is_refused_with_its_file(folder, value):
    _add(folder, "tokenizer_config.json", value)
    with pytest.raises(UserError, match="tokenizer_config.json: chat_template: found .*; expected a template"):
        read_chat_template(folder)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (TURN + PARTS + END, "writes no picture: it is a text model's"),
        (TURN + "{{- m.content }}" + END, "writes no picture, but a message's parts as Python or JSON spells them"),
        (TURN + "{{- m.content | tojson }}" + END, "writes no picture, but a message's parts as Python or JSON"),
        (TURN + "{{- '' + m.content }}" + END, r"cannot write a prompt of this package \(TypeError: .*concatenate"),
        (TURN + "{{- raise_exception('only text') }}" + END, r"cannot write .* \(TemplateError: only text\)"),
        ("{%- if tools | length %}{%- endif %}" + TURN + END, r"cannot write .* \("),
        ("{{- strange.thing }}" + TURN + END, r"cannot write .* \(UndefinedError: 'strange' is undefined"),
        ("{%- for %}", r"cannot write .* \(TemplateSyntaxError: "),
        (TURN + OF_USER * 2 + PARTS + END, "writes the picture 2 times"),
        (FIRST + TURN + PARTS + END, "writes the picture in another place"),
        (TURN + OF_USER + PARTS + END.split("{%- if")[0], "does not begin the answer's turn"),
        (TURN + PARTS + OF_USER + END, "writes the picture in another place"),
        (TURN + OF_USER + "{%- if m.role == 'user' %}" + PARTS + "{%- endif %}" + END, "leaves out the system text"),
        (TURN + OF_USER + "{%- if m.role == 'system' %}" + PARTS + "{%- endif %}" + END, "leaves out the goal"),
        (TURN + OF_USER + PARTS * 2 + END, "writes the system text 2 times"),
        (TURN + OF_USER + PARTS.replace("part.text", "part.text | upper") + END, "changes|leaves out the system text"),
        (TURN + OF_USER + PARTS.replace("part.text", "part.text | e") + END, "changes the goal"),
    ],
    ids=lambda value: value[:30] if value.startswith(("writes", "cannot", "leaves", "changes")) else "",
)
def test_template_that_writes_no_whole_prompt_is_refused(folder, template, problem):
    _add(folder, "chat_template.jinja", template)
    with pytest.raises(
        UserError, match=f"(?s)model: the chat template ({problem}).*; expected the system text, the pict"
    ):
        open_folder(folder)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            "{%- for a in range(99999) %}{%- for b in range(99999) %}{%- endfor %}{%- endfor %}",
            "takes longer than 1 s",
        ),
        ("{{- ('x' * 9999999999) | length }}", "MemoryError"),
        ("{{- '%9999999999d' | format(1) }}", "MemoryError"),
        ("{%- for a in range(9999999999) %}{%- endfor %}", "OverflowError: Range too big"),
        ("{%- macro a() %}{{ a() }}{%- endmacro %}{{ a() }}", "RecursionError"),
        ("{{- ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{- cycler.__init__.__globals__.os.popen('touch was_run') }}", "SecurityError|UndefinedError"),
        ("{{- raise_exception.__globals__.os }}", "SecurityError"),
        ("{%- include '/etc/passwd' %}", "TypeError: no loader"),
        ("{%- import 'os' as os %}", "TypeError: no loader"),
    ],
    ids=["loop", "text", "format", "range", "recursion", "class", "cycler", "globals", "include", "import"],
)
def test_template_that_never_ends_or_reaches_out_is_refused(folder, template, problem, monkeypatch):
    monkeypatch.setattr("sft.models.limits.LONGEST_S", 1.0)
    _add(folder, "chat_template.jinja", template + TURN + OF_USER + PARTS + END)
    with pytest.raises(UserError, match=rf"cannot write a prompt of this package \([^)]*({problem})"):
        open_folder(folder)


def test_check_ends_with_the_template_s_fault_instead_of_a_clean_verdict(folder, tmp_path):
    _add(folder, "chat_template.jinja", TURN + PARTS + END)
    csv = write_trajectories(tmp_path, build_tasks(1))
    with pytest.raises(UserError, match="the chat template writes no picture"):
        check.main([str(csv), "--tokenizer", str(folder)])


def test_tokenizer_without_the_picture_s_token_is_refused(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|image_pad|>", "<|picture|>"))
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|image_pad|>", "<|picture|>"))
    _add(folder, "chat_template.jinja", CHAT_TEMPLATE)
    with pytest.raises(UserError, match=r"found a tokenizer that does not know <\|image_pad\|> as one token"):
        open_folder(folder)


def test_template_has_what_published_ones_use(folder):
    """Tokens by name, `{% generation %}`, namespaces and `tojson`: published templates use them all."""
    template = (
        "{%- set ns = namespace(n=0) %}{{- pad_token }}{{- eos_token }}{%- if bos_token is defined and bos_token %}"
        "{{- bos_token }}{%- endif %}{{- {'a': 'é<'} | tojson }}" + CHAT_TEMPLATE
    )
    template += "{%- if false %}{%- generation %}x{%- endgeneration %}{%- break %}{%- endif %}".replace(
        "{%- break %}", ""
    )
    _add(folder, "chat_template.jinja", template)
    image = write_trajectories(folder, build_tasks(1)).parent / "screens/0.png"
    text = StepEncoder(open_folder(folder), TINY_AGENT).build_prompt("Open it", EMPTY_MEMORY, image).text
    assert text.startswith('<|endoftext|><|im_end|>{"a": "é<"}<|im_start|>system\n')


def test_demo_s_base_is_as_a_published_folder():
    assert "<|image_pad|>" in read_chat_template(ROOT / "demo/base")
