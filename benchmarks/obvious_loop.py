"""The rollout that everything is measured against: one step at a time through the model's own `generate`."""

import torch

from eval.policies.hf import ModelPolicy
from eval.policies.policy import RawAnswer, StepRequest


class ObviousLoop:
    """One step at a time through `generate`, which runs to the end-of-turn token."""

    def __init__(self, policy: ModelPolicy):
        self.model, self.encoder = policy.model, policy.encoder

    @torch.inference_mode()
    def answer(self, requests: list[StepRequest]) -> list[RawAnswer]:
        (request,) = requests
        prompt = self.encoder.build_prompt(
            request.instruction, request.memory, request.image_path, request.elements
        ).text
        batch = self.encoder.encode_screenshots([request.image_path])
        ids, types = self.encoder.encode_prompt(prompt, batch["image_grid_thw"][0].tolist())
        batch |= {"input_ids": torch.tensor([ids]), "mm_token_type_ids": torch.tensor([types])}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        device, dtype = self.model.device, self.model.dtype
        eos = self.encoder.tokenizer.eos_token_id
        output = self.model.generate(
            **{k: v.to(device, dtype if v.is_floating_point() else None) for k, v in batch.items()},
            max_new_tokens=self.encoder.agent.max_answer_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=eos,
            pad_token_id=self.encoder.tokenizer.pad_token_id,
        )
        answer = output[0, len(ids) :].tolist()
        text = self.encoder.tokenizer.decode(answer, skip_special_tokens=True)
        return [RawAnswer(text, "stop" if answer[-1] == eos else "length", len(ids), len(answer))]
