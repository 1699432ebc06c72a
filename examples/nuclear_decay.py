"""Nuclear decay on the attention products of a small Llama: their effective rank falls far below a plain run's.

python examples/nuclear_decay.py
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eckart.linalg import effective_rank
from eckart.regularizers import NuclearDecay, attention_products

STEPS, RATE = 150, 0.003


def rank(model: torch.nn.Module) -> float:
    """The mean effective rank of W_KᵀW_Q and W_OW_V over the heads."""
    products = attention_products(model)
    return sum(float(effective_rank(product.values)) for product in products) / len(products)


def train(strength: float) -> list[tuple[int, float, float]]:
    """Learn to repeat four random tokens; the step, the loss and the rank as training goes on."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    decay = NuclearDecay(attention_products(model, grouped=True), strength)  # two query heads share a key head
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    course = []
    for step in range(STEPS + 1):
        word = torch.randint(32, (16, 4))
        tokens = word.repeat(1, 4)
        loss = model(input_ids=tokens, labels=tokens).loss
        if step % 50 == 0:
            course.append((step, loss.item(), rank(model)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step(RATE)
    return course


plain, decayed = train(strength=0.0), train(strength=1.0)
print("        without decay           nuclear decay")
print("step    loss  effective rank    loss  effective rank")
for (step, loss, width), (_, other_loss, other_width) in zip(plain, decayed, strict=True):
    print(f"{step:4}   {loss:5.2f}  {width:14.1f}   {other_loss:5.2f}  {other_width:14.1f}")
