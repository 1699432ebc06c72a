"""The words for every column of a profile: the one glossary of the page, the command line's table and the docs.

Singular values are σ₁ ≥ σ₂ ≥ … ≥ σ_p with p = min(m, n), and the energy of a direction is σᵢ².
"""

from .column import Column
from .source_columns import SOURCE_COLUMNS

STATISTICS: dict[str, Column] = {
    "name": Column(
        "Matrix",
        "",
        "the path of the module whose weight it is",
        "The matrix's full name in the model.",
        "Suggested ranks and patterns of targets go by this name.",
    ),
    "of": Column(
        "Of",
        "",
        "weights · updates · gradients · activations · optimizer",
        "Which matrix was measured at this place in the model.",
        "Weights say what can be compressed, updates what rank an adapter needs, gradients what rank training "
        "needs, activations which input directions are used at all.",
    ),
    "layer": Column(
        "Layer",
        "index from 0",
        "the first whole number in the name",
        "The layer's place in the depth of the model; empty for matrices outside the layers, such as embeddings.",
        "Compare rows of one kind along the layers: first and last layers often stand out.",
    ),
    "kind": Column(
        "Kind",
        "",
        "the name after the layer's number",
        "What the matrix does inside its layer, for instance self_attn.q_proj.",
        "Kinds often differ more from each other than layers do: choose ranks per kind, not one for all.",
    ),
    "m": Column(
        "m",
        "rows",
        "number of outputs",
        "The matrix is m × n, as in y = W x.",
        "A rank-r factorisation stores r(m + n) numbers instead of mn.",
    ),
    "n": Column(
        "n",
        "columns",
        "number of inputs",
        "The matrix is m × n, as in y = W x.",
        "A rank-r factorisation saves storage only when r < mn / (m + n).",
    ),
    "norm": Column(
        "Norm",
        "the matrix's own",
        "‖W‖_F = √(Σ σᵢ²)",
        "The Frobenius norm: the square root of all the energy.",
        "The scale to which errors, updates and gradients are compared.",
    ),
    "spectral_norm": Column(
        "Spectral norm",
        "the matrix's own",
        "‖W‖₂ = σ₁",
        "The largest singular value: the most that the matrix can stretch an input.",
        "Far above the rest of the spectrum: one direction dominates, and low precision or a large step hits it first.",
    ),
    "stable_rank": Column(
        "Stable rank",
        "directions, 1 to min(m, n)",
        "‖W‖_F² / ‖W‖₂² = Σ σᵢ² / σ₁²",
        "How many directions as strong as the first would hold all the energy. It never exceeds the rank. A fast "
        "profile knows σ₁ to 1 %, and this number to 2 %.",
        "Near 1: a single direction rules. Small noise hardly moves it, so it is safe to track during training.",
    ),
    "effective_rank": Column(
        "Effective rank",
        "directions, 1 to min(m, n)",
        "exp(−Σ pᵢ ln pᵢ),  pᵢ = σᵢ² / Σ σⱼ²",
        "Over how many directions the energy is spread, by entropy: k equal singular values give exactly k. (Roy and "
        "Vetterli's effective rank, on σ² instead of σ.)",
        "Compressing: low beside min(m, n) means that truncation is cheap. Training: a gradient of low effective rank "
        "fits a small projected optimizer. Adapting: of an update, the order of the LoRA rank that could carry it.",
    ),
    "effective_rank_fraction": Column(
        "Effective rank fraction",
        "fraction, 0 to 1",
        "effective rank / min(m, n)",
        "The effective rank as a share of the largest possible, so that matrices of all shapes compare.",
        "Dark cells of the map are the low-rank places. A square random matrix has about 0.6, a very tall or wide "
        "one nearly 1; well below that is structure.",
    ),
    "participation_ratio": Column(
        "Participation ratio",
        "directions, 1 to min(m, n)",
        "(Σ σᵢ²)² / Σ σᵢ⁴",
        "Over how many directions the energy is spread, counted with more weight on the strong ones.",
        "Never above the effective rank; far below it means a few strong directions above a wide floor.",
    ),
    "nuclear_ratio": Column(
        "Nuclear ratio",
        "directions, 1 to min(m, n)",
        "(Σ σᵢ)² / Σ σᵢ² = ‖W‖_*² / ‖W‖_F²",
        "How far the nuclear norm is above the Frobenius norm: it weighs the tail the most of these ranks.",
        "Training with dropout or weight decay on factors presses it down; it falls as a model is regularised.",
    ),
    "energy_rank_90": Column(
        "Rank for 90 %",
        "directions",
        "smallest r with Σ_{i≤r} σᵢ² ≥ 0.90 Σ σᵢ²",
        "How many directions hold 90 % of the energy.",
        "Truncation to this rank leaves a relative error of √0.1 ≈ 32 % in Frobenius norm: coarse on weights, "
        "often enough on an update or a gradient.",
    ),
    "energy_rank_99": Column(
        "Rank for 99 %",
        "directions",
        "smallest r with Σ_{i≤r} σᵢ² ≥ 0.99 Σ σᵢ²",
        "How many directions hold 99 % of the energy.",
        "Truncation to this rank leaves a relative error of 10 %. Below mn / (m + n) it also saves storage.",
    ),
    "numerical_rank": Column(
        "Numerical rank",
        "directions",
        "#{ i : σᵢ > σ₁ · max(m, n) · ε }",
        "How many singular values are more than rounding (ε of the number format).",
        "Below min(m, n): truncation to it is free, or a channel is dead.",
    ),
    "noise_edge": Column(
        "Noise edge",
        "the matrix's own, as σ",
        "s(√m + √n) and its fluctuations, the noise's size s from the median σ",
        "The largest singular value of a random matrix of this size whose median singular value is the same "
        "(Marchenko and Pastur's law).",
        "What is above it is structure that chance does not make. What is below is not useless: trained weights "
        "keep fine detail there.",
    ),
    "outliers": Column(
        "Outliers",
        "directions",
        "#{ i : σᵢ above the noise edge }",
        "How many singular values stand clear of the noise edge.",
        "A floor, not a target: a rank below it surely loses structure. Zero: the spectrum looks random.",
    ),
    "alpha": Column(
        "α",
        "exponent",
        "p(λ) ∝ λ^(−α) for λ = σ² ≥ λ_min",
        "The exponent of the power law that fits the spectrum's tail best.",
        "Smaller means a heavier tail: energy in few directions. In well-trained layers it often lies between 2 and 6; "
        "read it only when its distance is small.",
    ),
    "alpha_distance": Column(
        "Distance of α",
        "0 to 1",
        "max |F_data(λ) − F_fit(λ)|",
        "Kolmogorov and Smirnov's distance between the tail and its power law.",
        "Above about 0.1 the tail is no power law, and α means little.",
    ),
}

COLUMNS = STATISTICS | SOURCE_COLUMNS
