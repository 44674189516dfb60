"""The benchmarks that cannot run at full size here run at a small one, through the same code."""

import json
import subprocess
import sys


def test_gpu_benchmark_trains_every_side_on_a_tiny_model(tmp_path):
    file = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.gpu_qlora", "--tiny", "--json", str(file)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    rows = {row["side"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows.keys() == {"packed", "padded", "stock"}
    assert all(row["steps_a_second"] > 0 and row["peak_gb"] is None for row in rows.values())
    assert rows["stock"]["ratio"] == 1
    assert rows["packed"]["tokens_a_second"] / rows["packed"]["steps_a_second"] < 0.7 * (
        rows["stock"]["tokens_a_second"] / rows["stock"]["steps_a_second"]
    )


def test_gpu_benchmark_without_a_gpu_says_so():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu_qlora"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 or "cuda" in done.stdout.lower()
    assert done.returncode != 2 or done.stderr.strip().endswith("found no CUDA GPU; expected one, or --tiny")


def test_expert_benchmark_compares_the_three_forms_of_one_layer(tmp_path):
    file = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.llama4_experts", "--small", "--json", str(file)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    rows = {row["form"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows.keys() == {"published", "4-bit parameters", "4-bit linears"}
    assert rows["published"]["error"] == 0
    for form in ("4-bit parameters", "4-bit linears"):
        assert rows[form]["weights_gb"] < 0.15 * rows["published"]["weights_gb"]  # of float32
        assert 0.01 < rows[form]["error"] < 0.2
    assert rows["4-bit linears"]["seconds"] < rows["4-bit parameters"]["seconds"]
