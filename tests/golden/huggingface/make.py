"""Makes the golden files of this folder: tiny random GPT-2 and LLaMA checkpoints in the Hugging Face
layouts, and what `transformers` computes from them. Run with torch and transformers >= 4.34:
python3 tests/golden/huggingface/make.py"""
import pathlib
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
MODELS = {
    "gpt2": GPT2LMHeadModel(GPT2Config(
        vocab_size=37, n_positions=24, n_embd=16, n_layer=2, n_head=2, n_inner=40,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0)),
    "llama": LlamaForCausalLM(LlamaConfig(
        vocab_size=37, max_position_embeddings=24, hidden_size=16, intermediate_size=40,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
        tie_word_embeddings=False)),
}

for name, model in MODELS.items():
    torch.manual_seed(7)
    for key, p in model.named_parameters():
        torch.nn.init.normal_(p, mean=1.0 if "norm" in key or ".ln_" in key and "weight" in key else 0.0, std=0.3)
    folder = HERE / name
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "generation_config.json").unlink()
    tokens = torch.randint(0, 37, (3, 24))
    out = model(tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(out.logits.reshape(-1, 37), tokens[:, 1:].reshape(-1))
    loss.backward()
    save_file({"tokens": tokens.to(torch.int32), "logits": out.logits.detach().contiguous(),
               "loss": loss.detach().reshape(1)}, folder / "expected.safetensors")
    save_file({k: p.grad.contiguous() for k, p in model.named_parameters()}, folder / "gradients.safetensors")
