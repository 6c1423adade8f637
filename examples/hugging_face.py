"""Fine-tune a language model with the Hugging Face Trainer; the model is tiny and made on the spot.

    pip install 'transformers[torch]'
    python examples/hugging_face.py

With a model of yours, `AutoModelForCausalLM.from_pretrained(...)` stands where it is made here.
"""

import tempfile

import torch
import transformers

import weightcast

TEXT = "the quick brown fox jumps over the lazy dog and the slow red fox sleeps under the tree "


def pretrained():
    """A stand-in for a model from the hub: two layers, one token per byte."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(
        vocab_size=128, num_attention_heads=2, max_position_embeddings=64, **sizes
    )
    return transformers.LlamaForCausalLM(config)


def main(steps=3, updates=60):
    """The loss on the text before and after fine-tuning on it."""
    transformers.set_seed(0)
    tokens = torch.tensor(list((TEXT * 16).encode()))
    texts = [{"input_ids": part, "labels": part} for part in tokens.split(32)[:-1]]

    model = pretrained()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 5, updates)
    weightcast.attach(model, optimizer, steps=steps)  # the one line

    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                folder,
                max_steps=updates,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=texts,
            eval_dataset=texts,
            optimizers=(optimizer, schedule),
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        return before, trainer.evaluate()["eval_loss"]  # at θ


if __name__ == "__main__":
    before, after = main()
    print(f"loss {before:.3f} before fine-tuning, {after:.3f} after it")
