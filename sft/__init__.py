"""Supervised fine-tuning of vision-language models as GUI agents for clinical software."""
