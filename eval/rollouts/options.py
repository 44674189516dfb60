"""The options of eval/rollout.py, some of which eval/live.py has too. Reads no file but the agent's configuration."""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from sft.agent import AgentConfig
from sft.recipe.recipe import load_agent_config
from sft.recipe.settings import Purpose, list_countries
from sft.verbs import build_parser

MODES = ("teacher", "own", "own_stop")
TRACKERS = ("trackio", "wandb", "mlflow")  # that have tables; each is the name of its package


def parse_arguments(argv: list[str], description: str | None) -> argparse.Namespace:
    """Read the command line; what cannot be run ends with a message and exit code 2."""
    parser = build_parser("python eval/rollout.py", description)
    model = add_model_options(parser)
    model.add_argument("--batch_size", type=int, default=16, help="steps answered at once [16]")
    data = parser.add_argument_group("data")
    data.add_argument("--test_csv", required=True, help="trajectory CSV to roll out")
    add_data_options(data)
    data.add_argument(
        "--detect",
        action="store_true",
        help="find the elements on each screenshot now (extra ocr), in place of the column Detected_Elements",
    )
    data.add_argument(
        "--on_bad_rows",
        choices=["refuse", "quarantine"],
        default="refuse",
        help="refuse a file with a bad row, or set each task with one aside [refuse]",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", type=Path, help="folder for the results")
    run.add_argument(
        "--mode",
        choices=[*MODES, "all"],
        default="own",
        help="whose memory a step is shown; own_stop ends a task at its first wrong step; all compares them [own]",
    )
    run.add_argument("--num_shards", type=int, default=1, help="machines that share the tasks [1]")
    run.add_argument("--shard", type=int, default=0, help="which of them this is, from 0 [0]")
    add_report_images(run)
    run.add_argument(
        "--report_to", choices=TRACKERS, help="tracker that is given the scores and a table of all steps [none]"
    )
    add_compute_options(run)
    run.add_argument("--self_check", action="store_true", help="check the evaluation itself; exit code 1 if it fails")
    arguments = parser.parse_args(argv)
    if problem := find_problem(arguments):
        parser.error(problem)
    return arguments


def add_model_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add what every command needs that asks a model; return the group."""
    model = parser.add_argument_group("what answers")
    model.add_argument("--model_path", help="folder that sft/run.py wrote, or a full model; openai: the model's name")
    model.add_argument("--base_model", help="base model of the adapter [the one it was trained on]")
    model.add_argument("--agent_config", help="agent_config.json, or a recipe [the one in --model_path]")
    model.add_argument(
        "--policy",
        choices=["model", "replay", "empty"],
        default="model",
        help="a model, the recording's right answers, or no answer at all [model]",
    )
    model.add_argument("--engine", choices=["hf", "vllm", "openai"], default="hf", help="what runs the model [hf]")
    model.add_argument(
        "--api_url", default="http://localhost:8000/v1", help="openai: server [http://localhost:8000/v1]"
    )
    model.add_argument(
        "--decoding",
        choices=["free", "constrained"],
        default="free",
        help="constrained: hold every answer to the JSON schema of the agent's actions [free]",
    )
    return model


def add_data_options(parser: argparse._ActionsContainer) -> None:
    """Add the options of every command that takes tasks."""
    parser.add_argument("--image_root", help="folder of the recorded screenshots [folder of the CSV]")
    parser.add_argument("--max_tasks", type=int, help="take only the first so many tasks")
    parser.add_argument(
        "--allow_overlap", action="store_true", help="take tasks that the model was trained on; the report says so"
    )


def add_compute_options(parser: argparse._ActionsContainer) -> None:
    """Add what the compute ledger asks for."""
    parser.add_argument(
        "--run_purpose",
        choices=get_args(Purpose),
        default="inference",
        help="what the compute report counts it as [inference]",
    )
    parser.add_argument("--country_iso_code", help="where this runs, e.g. DEU, for CO2e [as in the model's recipe]")


def add_report_images(parser: argparse._ActionsContainer) -> None:
    """Add the option of every command that writes a report."""
    parser.add_argument(
        "--report_images",
        choices=["embed", "link"],
        default="embed",
        help="embed: the report holds its screenshots; link: it refers to them [embed]",
    )


def find_problem(arguments: argparse.Namespace) -> str | None:
    """Return what cannot be run, or None."""
    if arguments.policy == "model" and not arguments.model_path and not arguments.self_check:
        return "--policy model needs --model_path"
    if arguments.output_dir is None and not arguments.self_check:
        return "the following arguments are required: --output_dir"
    if arguments.batch_size < 1:
        return f"--batch_size: found {arguments.batch_size}; expected at least 1"
    if not 0 <= arguments.shard < arguments.num_shards:
        return f"--shard: found {arguments.shard} of {arguments.num_shards}; expected 0 to --num_shards - 1"
    if arguments.report_to and find_spec(arguments.report_to) is None:
        return f"--report_to: found {arguments.report_to}, whose package is missing; expected it installed"
    if arguments.num_shards > 1 and arguments.report_to:
        return "--report_to: found --num_shards too; expected the whole rollout: a shard has no scores of its own"
    if arguments.num_shards > 1 and arguments.mode == "all":
        return "--mode all: found --num_shards too; run each mode in shards, merge them and compare"
    return find_common_problem(arguments)


def find_common_problem(arguments: argparse.Namespace) -> str | None:
    """Return what is wrong with the number of tasks or the country, or None."""
    if arguments.max_tasks is not None and arguments.max_tasks < 1:
        return f"--max_tasks: found {arguments.max_tasks}; expected at least 1"
    if arguments.country_iso_code and arguments.country_iso_code not in list_countries():
        return f"--country_iso_code: found {arguments.country_iso_code}; expected three letters, e.g. DEU"
    return None


def read_agent(arguments: argparse.Namespace) -> AgentConfig:
    """Return how prompts are made: as in training, or the default where nothing was trained.

    `--model_path` is a folder, but for engine openai: there it is a name that the server knows, and no folder is read
    but that of `--agent_config`.
    """
    folder = find_model_folder(arguments)
    if folder is None and not arguments.agent_config:
        return AgentConfig()
    return load_agent_config(Path(folder or "."), arguments.agent_config)


def find_model_folder(arguments: argparse.Namespace) -> str | None:
    """Return the folder that says what the model was trained on; a served one's is where its agent_config.json is."""
    if arguments.engine != "openai":
        return arguments.model_path
    return str(Path(arguments.agent_config).parent) if arguments.agent_config else None
