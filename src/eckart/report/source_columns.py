"""The words for the columns that only some sources have: tokens of activations, overlaps of updates, and so on."""

from .column import Column

SOURCE_COLUMNS: dict[str, Column] = {
    "tied": Column(
        "Tied with",
        "",
        "the other names of the same storage",
        "Other places in the model that use this very matrix, such as a head that is the embedding again.",
        "Counted once. A change here changes it there too: factor both or neither, or untie them first.",
    ),
    "tokens": Column(
        "Tokens",
        "rows",
        "number of input rows counted",
        "How many token positions were seen, padding left out.",
        "A spectrum from N tokens cannot have a rank above N: many more tokens than channels are needed.",
    ),
    "shared_with": Column(
        "Shared with",
        "",
        "the layers that read the same tensor",
        "Layers whose input is the very same tensor, measured once.",
        "Their ranks can be chosen together, and their inputs stored once.",
    ),
    "intrinsic_dimension": Column(
        "Intrinsic dimension",
        "dimensions",
        "TwoNN: maximum likelihood of p(μ) = d μ^(−d−1) for μ = r₂ / r₁, the largest tenth of μ censored",
        "The dimension of the curved surface near which the activations lie, from each point's distances r₁, r₂ to its "
        "two nearest neighbours.",
        "Far below the effective rank: the points lie on a curved surface that no linear truncation can follow.",
    ),
    "overlap_left": Column(
        "Overlap, outputs",
        "0 to 1",
        "‖Uᵀ U₀‖_F² / min(i, j)",
        "How much of the update's leading output directions lies within the base's leading ones.",
        "Near 1: fine-tuning amplifies what the model has. Near 0: it writes into new directions.",
    ),
    "overlap_right": Column(
        "Overlap, inputs",
        "0 to 1",
        "‖Vᵀ V₀‖_F² / min(i, j)",
        "How much of the update's leading input directions lies within the base's leading ones.",
        "High: an adapter can start from the base's top singular vectors (as PiSSA does). Low: from its minor ones or "
        "from the gradient.",
    ),
    "relative_norm": Column(
        "Relative size",
        "fraction",
        "‖ΔW‖_F / ‖W‖_F",
        "How large the update is beside the weight that it changes.",
        "Where it is largest, give an adapter more rank, and compress with care.",
    ),
    "adapter_rank": Column(
        "Adapter's rank",
        "directions",
        "rows of A, columns of B",
        "The rank that the adapter was given.",
        "Where the update's effective rank is far below it, a smaller adapter would do.",
    ),
    "intruders": Column(
        "Intruders",
        "directions",
        "#{ leading u of W + ΔW far from every u of W }",
        "New leading singular directions that resemble none of the base's.",
        "Seen with low-rank fine-tuning at a high learning rate, and linked to forgetting. A higher rank or rsLoRA's "
        "scaling makes fewer.",
    ),
    "state": Column(
        "State",
        "",
        "the optimizer's name for it",
        "Which of the optimizer's tensors was measured: exp_avg is Adam's mean gradient, exp_avg_sq its mean square.",
        "A mean gradient of low effective rank fits a projected optimizer; mean squares are positive, so their first "
        "direction always dominates.",
    ),
    "suggested_rank": Column(
        "Suggested rank",
        "directions",
        "min Σ (tail ÷ energy)  with  Σ min(r(m + n), mn) ≤ budget · Σ mn",
        "The rank that loses the least of the matrices' energies (each taken as a share of its own total) under a "
        "budget of parameters for all of them; “dense” where the matrix is better kept whole.",
        "A place to start, in a JSON file from name to rank. It judges by energy alone: what the data needs may "
        "differ, so measure the loss after compressing, and give an adapter more rank where its update is large.",
    ),
}
