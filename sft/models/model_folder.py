"""Is a model's folder whole, and of a kind that can be loaded? Reads configs and headers, never weights or torch."""

import codecs
from collections import Counter
from pathlib import Path
from typing import Any, get_args, get_type_hints

from safetensors import SafetensorError, safe_open

from sft.errors import UserError
from sft.file_kinds import LFS_WAY_OUT, is_lfs_pointer
from sft.json_text import parse_json
from sft.models.families import find_family_of
from sft.recipe.settings import ModelSettings

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DTYPES: tuple[str, ...] = get_args(get_type_hints(ModelSettings)["dtype"])
# What a model is read from beside its weights. A folder has some of them.
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
)
_DTYPES_IN_FILES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_OTHER_WEIGHTS = (
    ("*.gguf", "GGUF files, which are made for llama.cpp and mostly quantised"),
    ("*.onnx", "ONNX files, which cannot be trained"),
    ("onnx/*.onnx", "ONNX files, which cannot be trained"),
    ("*.bin", "pickled weights (.bin), which can run code when they are opened"),
    ("*.pt*", "pickled weights (.pt, .pth), which can run code when they are opened"),
    ("*.h5", "weights for TensorFlow"),
    ("*.msgpack", "weights for Flax"),
)
# How a processor and a model's vision part call what a screenshot is cut into; Llama-4's processor names none.
_PATCH_KEYS = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}
# What programs that download leave behind until a file is whole.
_PARTS_OF_DOWNLOADS = (
    "*.incomplete",
    ".cache/huggingface/download/**/*.incomplete",
    "*.part",
    "*.aria2",
    "*.crdownload",
)
_MOST_HEADER_BYTES = 100_000_000  # what the safetensors library itself allows
# Of what a model is built, one by one, before a weight is read: a billion would never end. Models have some hundred.
_COUNTED = ("num_hidden_layers", "depth", "num_experts", "num_local_experts", "num_attention_heads", "num_heads")
_MOST_COUNTED = 10_000


def check_model_folder(folder: Path, needs_weights: bool = True) -> None:
    """Make sure that a folder holds a model of a supported family, unquantised, and that its files are whole.

    Takes milliseconds: of weights the headers are read, and compared with the files' sizes.

    Raises:
        UserError: every file that is missing, cut short or only a pointer; a model of a kind that cannot be loaded.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: {_describe_without_config(folder)}")
    problems = find_small_file_problems(folder) or find_processor_problems(folder)
    if not problems:
        problems = find_config_problems(read_json(folder / "config.json"), str(folder))
    if needs_weights:
        problems += _find_weight_problems(folder)
    if problems:
        raise UserError("\n".join(problems))


def check_small_files(folder: Path) -> None:
    """Make sure that configs, tokenizer and chat template, as far as a folder has them, are whole and of one model.

    Raises:
        UserError: every file that is empty, cut short or only a Git LFS pointer; a processor of another model.
    """
    if problems := find_small_file_problems(folder) or find_processor_problems(folder):
        raise UserError("\n".join(problems))


def find_small_file_problems(folder: Path) -> list[str]:
    return [
        f"{path}: {problem}"
        for path in (folder / name for name in SMALL_FILES)
        if path.is_file() and (problem := _find_damage(path))
    ]


def find_processor_problems(folder: Path) -> list[str]:
    """Return what a folder's processor files say that its `config.json` contradicts: they are another model's.

    A screenshot cut into patches of another size would stop training in the vision tower. A folder may lack either.
    """
    config, written = read_json(folder / "config.json"), read_json(folder / "processor_config.json")
    vision, older = config.get("vision_config"), read_json(folder / "preprocessor_config.json")
    image = written.get("image_processor") or older
    if not config or not isinstance(vision, dict) or not isinstance(image, dict):
        return []
    name = written.get("processor_class") or older.get("processor_class")
    if name and (name == "Llama4Processor") != (config.get("model_type") == "llama4"):
        found = f"processor_class {name} beside a config.json of model type {config.get('model_type')}"
    else:
        pairs = {key: (image.get(key), vision.get(of)) for key, of in _PATCH_KEYS.items()}
        found = ", ".join(
            f"{key} {ours} beside {its} in config.json"
            for key, (ours, its) in pairs.items()
            if None not in (ours, its) and ours != its
        )
    way_out = "expected the model's own: copy processor_config.json and preprocessor_config.json of the published one"
    return [f"{folder}: found {found}; {way_out}"] if found else []


def find_config_problems(config: dict[str, Any], name: str) -> list[str]:
    """Return what says that a model of this `config.json` cannot be trained here: its family, its quantisation."""
    problems = []
    try:
        find_family_of(config.get("model_type", ""))
    except UserError as error:
        problems.append(str(error))
    parts = [config, *(part for key, part in config.items() if key.endswith("_config") and isinstance(part, dict))]
    for key in ("quantization_config", "compression_config"):
        for part in parts:
            if fields := part.get(key):
                method = fields.get("quant_method", "") if isinstance(fields, dict) else ""
                kind = f"a model that is already quantised ({method or key})"
                problems.append(
                    f"{name}: found {kind}; expected the unquantised model it was made from: choose that one, "
                    "load_in_4bit quantises it while it is loaded"
                )
    counts = ((key, value) for part in parts for key, value in part.items() if key in _COUNTED)
    problems += [
        f"{name}: found {key} {value!r}; expected a number from 0 to {_MOST_COUNTED}: restore config.json"
        for key, value in counts
        if value is not None and not (isinstance(value, int) and 0 <= value <= _MOST_COUNTED)
    ]
    return problems[:2]


def list_weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that make up a model, as transformers chooses them: whether they exist or not.

    Raises:
        UserError: an index that does not say what is in which file.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places or not all(isinstance(p, str) for p in places.values()):
            raise UserError(f"{index}: found no weight_map from names to files; restore the file: download it again")
        names = sorted(set(places.values()))
        if outside := [name for name in names if Path(name).name != name or name == ".."]:
            raise UserError(f"{index}: found {outside[0][:80]!r}; expected names of files beside it: restore the file")
        return [folder / name for name in names]
    only = folder / "model.safetensors"
    return [only] if only.is_file() else []


def read_header(path: Path) -> dict[str, Any]:
    """Return what a safetensors file says of its tensors: `dtype`, `shape` and `data_offsets` by name.

    Raises:
        UserError: the file is cut short, empty, or holds something else.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(100)
        n_bytes = int.from_bytes(head[:8], "little")
        file.seek(8)
        text = file.read(n_bytes) if n_bytes <= min(size - 8, _MOST_HEADER_BYTES) else b""
    if is_lfs_pointer(head):
        raise UserError(f"{path}: found a Git LFS pointer; {LFS_WAY_OUT}")
    if not size:
        raise UserError(f"{path}: found a damaged file (it is empty); expected weights: copy or download it again")
    try:
        header: dict[str, Any] = parse_json(text)
        header.pop("__metadata__", None)
        end = max((int(fields["data_offsets"][1]) for fields in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: found a damaged file ({size} bytes that do not begin as safetensors does); expected weights: "
            "copy or download it again"
        ) from error
    if size != 8 + n_bytes + end:
        raise UserError(
            f"{path}: found a damaged file ({size} bytes, and its header speaks of {8 + n_bytes + end}); expected the "
            "whole file: copy or download it again"
        )
    try:
        with safe_open(path, framework="numpy"):  # holds shapes and types to the data; reads none of it
            return header
    except SafetensorError as error:
        raise UserError(
            f"{path}: found a damaged file ({error}); expected weights: copy or download it again"
        ) from error


def read_dtype(folder: Path) -> str:
    """Return the number format of a model's weights: `bfloat16`, `float16` or `float32`.

    Published configs name it as `dtype` or, before transformers 5, `torch_dtype`, at the top or for the text part
    only. A config that names none leaves it to the weights: the format that most of them have.

    Raises:
        UserError: a format that cannot be computed with.
    """
    path = folder / "config.json"
    config = read_json(path)
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            name = part.get(key)
            if isinstance(name, str) and name != "auto":
                name = name.removeprefix("torch.")
                if name not in DTYPES:
                    raise UserError(f"{path}: {key}: found {name!r}; expected one of {', '.join(DTYPES)}")
                return name
    n_bytes: Counter[str] = Counter()
    for file in list_weight_files(folder):
        for fields in read_header(file).values():
            n_bytes[fields["dtype"]] += fields["data_offsets"][1] - fields["data_offsets"][0]
    known = [name for name, _ in n_bytes.most_common() if name in _DTYPES_IN_FILES]
    return _DTYPES_IN_FILES[known[0]] if known else "bfloat16"


def is_adapter(folder: str | Path) -> bool:
    """Say whether a folder holds an adapter, which needs its base model, and not a model of its own."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def find_base_name(folder: str | Path, given: str | None = None) -> str | None:
    """Return the base model, a Hub id or a folder, of an adapter's folder; None where a folder holds no adapter.

    That is the one `given` by --base_model, or else the one that the adapter names.

    Raises:
        UserError: `adapter_config.json` is broken or names none.
    """
    if not is_adapter(folder):
        return None
    if given:
        return given
    path = Path(folder) / ADAPTER_CONFIG
    name = read_json(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(
            f"{path}: found no base_model_name_or_path; expected the adapter's base: name it by --base_model"
        )
    return name


def read_rank(folder: Path) -> int:
    """Return the rank of the LoRA matrices in an adapter's folder.

    Raises:
        UserError: `adapter_config.json` is broken or has no rank.
    """
    rank = read_json(folder / ADAPTER_CONFIG).get("r")
    if not isinstance(rank, int) or rank < 1:
        raise UserError(f"{folder / ADAPTER_CONFIG}: found r {rank!r}; expected the rank of LoRA: restore the file")
    return rank


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one where there is no such file.

    Raises:
        UserError: the file is broken, cut short or only a Git LFS pointer.
    """
    if not path.is_file():
        return {}
    if (n_bytes := path.stat().st_size) > _MOST_HEADER_BYTES:
        raise UserError(f"{path}: found a file of {n_bytes} bytes; expected at most {_MOST_HEADER_BYTES}: restore it")
    data = path.read_bytes()
    if is_lfs_pointer(data):
        raise UserError(f"{path}: found a Git LFS pointer; {LFS_WAY_OUT}")
    try:
        fields = parse_json(data.decode("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: found broken JSON ({error}); restore the file") from error
    return fields if isinstance(fields, dict) else {}


def _find_damage(path: Path) -> str | None:
    """Return what is wrong with a small file, without reading a tokenizer's megabytes as JSON."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(100)
        file.seek(max(0, size - 100))
        tail = file.read()
    if is_lfs_pointer(head):
        return f"found a Git LFS pointer; {LFS_WAY_OUT}"
    if not head.strip():
        return "found an empty file; expected its content: download it again"
    if path.suffix == ".json" and head.startswith(codecs.BOM_UTF8):
        return "found a byte order mark, with which transformers cannot read it; save it as UTF-8 without one"
    if path.suffix == ".json" and not tail.rstrip().endswith((b"}", b"]")):
        return "found broken JSON, which ends in the middle; restore the file: download it again"
    return None


def _find_weight_problems(folder: Path) -> list[str]:
    files = list_weight_files(folder)
    if not files:
        return [f"{folder}: {_describe_without_weights(folder)}"]
    problems = []
    if missing := [path.name for path in files if not path.is_file()]:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        problems.append(
            f"{folder}: found {len(files) - len(missing)} of the {len(files)} files that model.safetensors.index.json "
            f"names; expected {names} too: {_describe_download(folder)}"
        )
    for path in files:
        if path.is_file():
            try:
                read_header(path)
            except UserError as error:
                problems.append(str(error))
    return problems


def _describe_without_weights(folder: Path) -> str:
    if found := _find_other_weights(folder):
        return f"found {found}; expected *.safetensors: choose the unquantised model in that format"
    if shards := sorted(path.name for path in folder.glob("model-*.safetensors")):
        return (
            f"found {shards[0]} and no model.safetensors.index.json, which says what is in which file; expected it "
            f"too: {_describe_download(folder)}"
        )
    return f"found no *.safetensors; expected the model's weights there: {_describe_download(folder)}"


def _describe_without_config(folder: Path) -> str:
    if is_adapter(folder):
        return (
            "found an adapter and no config.json; expected a base model: give the one that adapter_config.json names, "
            "or merge the two first (python -m sft.export)"
        )
    other = f" beside {found}" if (found := _find_other_weights(folder)) else ""
    return f"found no config.json{other}; expected a model folder as save_pretrained writes it"


def _find_other_weights(folder: Path) -> str | None:
    """Return what weights of another format a folder holds, in words."""
    return next((text for pattern, text in _OTHER_WEIGHTS if any(folder.glob(pattern))), None)


def _describe_download(folder: Path) -> str:
    part = next((path for pattern in _PARTS_OF_DOWNLOADS for path in sorted(folder.glob(pattern))), None)
    begun = f"a download has not finished (found {part.name}); " if part else ""
    return (
        f"{begun}download the model on a machine with access (`hf download OWNER/NAME --local-dir FOLDER`, which "
        "resumes) and pass --model_name_or_path /path/to/its/folder"
    )
