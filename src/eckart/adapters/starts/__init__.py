"""How an adapter's factors start: one function (adapter, Look) → None for each init, in small files.

| start | file | looks at | B₀ | A₀ | Δ at first |
|---|---|---|---|---|---|
| kaiming, gaussian, orthogonal | plain | nothing | 0 | random | 0 |
| PiSSA | spectral | W | U√(Σ/s), largest | √(Σ/s)Vᵀ | 0, by a frozen pair |
| MiLoRA | spectral | W | the same of the smallest | | 0, by a frozen pair |
| MiCA | spectral | W | U of the smallest, frozen | 0 | 0 |
| OLoRA | spectral | W | Q_{:r} of W = QR | R_{:r} | 0, by a frozen pair |
| LoRA-XS | spectral | W | UΣ, frozen | Vᵀ, frozen | 0, as the core is |
| EVA | activations | covariance of x | 0 | its leading directions | 0 |
| CorDA | activations | W and Σxxᵀ | U√(Σ/s) of WC | √(Σ/s)VᵀC⁻¹ | 0, by a frozen pair |
| LoRA-GA | gradients | ∇ | ζU_{r:2r} | ζV_{:r}ᵀ | 0, by a frozen pair |
| LoRA-One | gradients | ∇ | √(Σ/σ₁γ), of −∇ | | a step down ∇ |
| LoRA-SB | gradients | ∇ | U of −η·sign ∇, frozen | Vᵀ, frozen | Adam's first step, R = Σ |
| LoftQ | loftq | the weight before quantisation | U√(Σ/s) of the loss | √(Σ/s)Vᵀ | what quantisation lost |
| VeRA, LoHa, LoKr | shapes | nothing | one factor zero, the others constant or random | | 0 |
| AdaLoRA | triplets | nothing | Λ zero, P and Q Gaussian | | 0 |
| Deep LoRA | deep | nothing, or ∇ | ε times orthogonal | | ε³ |

The base weight is never touched. All calculate in at least float32, for linear, Conv1D, convolution (each group of it)
and embedding alike; EVA and CorDA have no statistics of an embedding's input, and say so.
"""
