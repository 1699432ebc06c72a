"""The words for the columns of a compressed model's page; those that a profile has too are the profile's."""

from .column import Column
from .columns import COLUMNS

COMPRESSION_COLUMNS: dict[str, Column] = {key: COLUMNS[key] for key in ("name", "layer", "kind")} | {
    "form": Column(
        "Form",
        "",
        "dense · factors · pivoted · …",
        "What stands in the matrix's place: itself (dense), a product of two factors, or another layer.",
        "Pivoted factors hold the same product in r(m + n − r) numbers instead of r(m + n): never more than dense.",
    ),
    "size": Column(
        "Rank",
        "directions",
        "r, or the neurons that are left",
        "The rank of the product that replaces the matrix; for a reduced block, how many of its neurons are left.",
        "Low ranks go where the loss depends least on the matrix. At the full size the matrix is untouched.",
    ),
    "full": Column(
        "Full rank",
        "directions",
        "min(m, n), or all neurons",
        "The size at which nothing is compressed.",
        "The rank is to be read beside it.",
    ),
    "kept": Column(
        "Kept",
        "fraction",
        "stored bytes / dense bytes",
        "The share of the matrix's bytes that is left; indices, codes and scales count.",
        "Dark cells of the map gave up the most. Equal everywhere: the ranks were not chosen by what each is worth.",
    ),
    "bytes": Column(
        "Bytes",
        "bytes",
        "factors, indices, codes and scales",
        "What is stored in the matrix's place, in the model's type.",
        "The largest of them are where a smaller budget would have to be found.",
    ),
    "dense_bytes": Column(
        "Dense bytes",
        "bytes",
        "m n · bytes of a number",
        "What the matrix takes as it was.",
        "Large matrices that lose little are the best to compress.",
    ),
    "predicted_error": Column(
        "Predicted error",
        "fraction",
        "√(Σ_{i>r} σᵢ² / Σ σᵢ²)",
        "The relative error in the method's metric, on the calibration text; for svd that of the weights themselves.",
        "Known at every rank without running the model. It judges a matrix alone, before the others are compressed.",
    ),
    "measured_error": Column(
        "Measured error",
        "fraction",
        "‖(W − W')X‖_F / ‖W X‖_F",
        "How far the matrix's outputs moved on held-out inputs of the dense model; empty where it was not measured.",
        "Far above the predicted one: the calibration text was too short, or of another domain than the held-out text.",
    ),
    "int8_error": Column(
        "int8 error",
        "fraction",
        "√(Σ_ij (s_ij² / 12) G_ii C_jj) / √(Σ σᵢ²)",
        "What plain 8-bit codes, with a scale for each 64 entries, would lose in the same metric.",
        "Far below the predicted error at no more bytes: where bytes are all that counts, codes win.",
    ),
    "int4_error": Column(
        "int4 error",
        "fraction",
        "127/7 of that of int8",
        "What plain 4-bit codes would lose in the same metric.",
        "Above the predicted error: here low rank is the better use of the bytes, or both together.",
    ),
    "stable_rank": COLUMNS["stable_rank"]._replace(
        words="How many directions as strong as the first would hold all the energy, in the method's metric.",
        reading="Near 1: one direction rules what the matrix does on this text.",
    ),
    "effective_rank": COLUMNS["effective_rank"]._replace(
        words="Over how many directions the energy is spread, by entropy, in the method's metric.",
        reading="Far below the full rank: truncation is cheap on text like the calibration's.",
    ),
    "tokens": COLUMNS["tokens"]._replace(
        words="How many token positions of the calibration text the matrix read, padding left out.",
        reading="A covariance from N tokens has no rank above N: below the number of inputs it must be shrunk.",
    ),
}
