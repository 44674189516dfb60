"""Packages `sft` and `eval`. The versions that were tested together are in constraints.txt.

Of older releases torch 2.11 was run, and no other. transformers 5.17 trains and rolls out Qwen3-VL, Qwen2.5-VL and
Llama-4 too, but not Qwen3.5, whose cache is another one there: it is below the bound for that.
"""

from setuptools import find_packages, setup

DEEPSPEED = ["deepspeed>=0.19.8"]  # what ZeRO needs
# Finds the elements of screenshots. Another release has other models in its wheel, and finds other elements.
OCR = ["rapidocr==3.10.0", "onnxruntime>=1.32"]

setup(
    name="clinical-gui-agents",
    version="0.1.0",
    description="Supervised fine-tuning and rollout of vision-language models as GUI agents for clinical software",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["sft", "sft.*", "eval", "eval.*", "demo", "benchmarks", "benchmarks.*"]),
    package_data={
        **{room: ["*.j2", "*.css", "*.js"] for room in ("eval.reporting", "sft.check", "sft.pages")},
        "sft.training": ["*.j2"],
    },
    install_requires=[
        "torch>=2.11,<2.14",
        "transformers>=5.23,<6",
        "trl>=1.16,<2",
        "peft>=0.21",
        "bitsandbytes>=0.50",
        "accelerate>=1.15",
        "datasets>=5.2",
        "pillow>=13",
        "pyarrow>=26",
        "pydantic>=2.14",
        "pyyaml>=6",
        "numpy>=2",
        "jinja2>=3.1",
        "matplotlib>=3.10",
        "rapidfuzz>=3.14",
        "rich>=15",
        "tqdm>=4.67",
        "tensorboard>=2.20",
        "codecarbon>=3.3,<4",
        "nvidia-ml-py>=13",
        "psutil>=7",
    ],
    extras_require={
        "constrained": ["xgrammar>=0.2.8"],  # brings triton, which is large
        "deepspeed": DEEPSPEED,
        "dev": [
            "pytest>=9",
            "pytest-xdist>=3.8",
            "hypothesis>=6.150",
            "ruff>=0.15",
            "mypy>=2",
            "playwright>=1.60",
            "dashscope>=2",  # ships Qwen's BPE, for tests/test_real_files.py
            "types-PyYAML",
            "xgrammar>=0.2.8",
            *DEEPSPEED,
            *OCR,
        ],
        "ocr": OCR,
        "vllm": ["vllm"],
    },
)
