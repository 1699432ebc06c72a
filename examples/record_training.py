"""Figure 1 of the overview on a small network: the weights move in few directions, found early.

python examples/record_training.py
"""

import torch

import eckart

torch.manual_seed(0)
X = torch.randn(512, 64)
Y = X[:, :4].argmax(dim=1)
model = torch.nn.Sequential(
    torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 128), torch.nn.GELU(), torch.nn.Linear(128, 4)
)
recorder = eckart.Recorder(model, targets="2", rank=3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for step in range(1, 101):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(X), Y).backward()
    optimizer.step()
    if step % 20 == 0:
        recorder.step(step)

print("step  leading singular values of W(t) − W(0)     angle of its leading subspace to the final one")
for row in recorder.rows():
    values = "  ".join(f"{value:5.3f}" for value in row["values"][:5])
    print(f"{row['step']:4}  {values}     {row['angle_to_last'] * 57.2958:4.1f}°")
