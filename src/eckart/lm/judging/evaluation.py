"""Perplexity on several texts at once, and whether the text that a model was calibrated on makes it look too good.

A compressed model is best on text like that of its calibration: perplexity there says little of other text, and on text
that was calibrated on it says nothing. Whether a text is in the calibration's domain is told by a plain rule: the same
source, or at least 5 % of its 3-grams of tokens known from the calibration (see `lm.overlap`).
Paper: none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from eckart.lm.calibration import LONGEST_TOKEN, Calibration, Source, first_tokens
from eckart.lm.overlap import PASSAGE, PHRASE, SAME_DOMAIN, grams, share
from eckart.lm.perplexity import perplexity
from eckart.lm.text import needed, read_text
from eckart.nn import Progress, matrices

FEW = 2000  # predictions, below which a mean over them is only roughly that of the text


@dataclass(frozen=True)
class Evaluated:
    """How well one text is predicted.

    Args:
        text: What it is called.
        source: Where it is from.
        tokens: How many were predicted.
        context: Tokens in a window.
        perplexity: exp of the mean −log p.
        domain: "in" or "out" of the calibration's domain; None where none is known.
        shared: Which share of its 3-grams of tokens the calibration has; None likewise.
        seen: Which share of its 32-grams: of text that the calibration has word for word; None likewise.
    """

    text: str
    source: str
    tokens: int
    context: int
    perplexity: float
    domain: str | None = None
    shared: float | None = None
    seen: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """How well some texts are predicted.

    Args:
        texts: One entry for each.
        notes: What the reader of these numbers should know, in sentences.

    Example:
        >>> print(Evaluation((Evaluated("help", "pydoc", 8000, 1024, 15.1, domain="out"),)))
        help: perplexity 15.10 over 8,000 tokens (out of the calibration's domain)
    """

    texts: tuple[Evaluated, ...]
    notes: tuple[str, ...] = ()

    @property
    def perplexities(self) -> dict[str, float]:
        """Text → perplexity."""
        return {each.text: each.perplexity for each in self.texts}

    def rows(self) -> list[dict[str, Any]]:
        """As plain data."""
        return [asdict(each) for each in self.texts]

    def __str__(self) -> str:
        told = {"in": " (in the calibration's domain)", "out": " (out of the calibration's domain)", None: ""}
        lines = [
            f"{each.text}: perplexity {each.perplexity:.2f} over {each.tokens:,} tokens{told[each.domain]}"
            for each in self.texts
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def evaluate(
    model: PreTrainedModel,
    tokenizer: Tokenizer | None,
    texts: Mapping[str, Source],
    *,
    context: int = 1024,
    tokens: int | Mapping[str, int] | None = None,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure the perplexity of several texts.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        texts: What each is called → what `read_text` takes, such as {"wikitext": "test.txt", "pydoc": "pydoc"}.
        context: Tokens in a window, which do not overlap.
        tokens: How many tokens of each text to use, from its start; one number, or one for some; None: all.
        calibration: What the model was compressed with, to tell what is in its domain.
        progress: Called as progress(done, total, label).

    Returns:
        Evaluation: its notes say which perplexities are too good, and where the tokens are too few.

    Raises:
        FileNotFoundError: There is nothing at a source.
        ValueError: No texts, tokens for a text that is not there, or what `perplexity` refuses (named with the text).
        TypeError: The model predicts no next token.

    Example:
        >>> from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
        >>> from eckart.lm import checkpoint_path
        >>> tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("minilm"))
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
        >>> found = evaluate(model, tokenizer, {"help": "pydoc"}, context=64, tokens=100)
        >>> [(each.text, each.tokens) for each in found.texts], len(found.notes)
        ([('help', 100)], 1)
    """
    if not texts:
        raise ValueError('texts: none; give some by name, such as {"wikitext": "test.txt", "pydoc": "pydoc"}')
    counts = token_counts(texts, tokens)
    found = []
    for name, source in texts.items():
        count = counts[name]
        text = read_text(source, limit=None if count is None else LONGEST_TOKEN * count)
        try:
            measured = perplexity(model, tokenizer, text, context=context, tokens=count, progress=progress)
        except ValueError as error:
            raise ValueError(f"{error} (text {name})") from None
        known = _known(tokenizer, source, count, calibration)
        found.append(Evaluated(name, str(source), measured.tokens, context, measured.value, **known))
    return Evaluation(tuple(found), tuple(_notes(found, model, calibration)))


def token_counts(texts: Mapping[str, Source], tokens: int | Mapping[str, int] | None) -> dict[str, int | None]:
    """How many tokens of each text to use; None: all.

    Example:
        >>> token_counts({"a": "a.txt", "b": "b.txt"}, {"a": 100})
        {'a': 100, 'b': None}
    """
    given: Mapping[str, int | None] = tokens if isinstance(tokens, Mapping) else dict.fromkeys(texts, tokens)
    for name, count in given.items():
        if name not in texts:
            raise ValueError(f"tokens: {name!r} is none of the texts ({', '.join(texts)})")
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 2):
            raise ValueError(f"tokens: {count!r} of {name}; give an integer of at least 2, or None for all")
    return {name: given.get(name) for name in texts}


def _known(
    tokenizer: Tokenizer | None, source: Source, count: int | None, calibration: Calibration | None
) -> dict[str, Any]:
    """What the calibration has of a text."""
    if calibration is None:
        return {}
    ids, others = first_tokens(needed(tokenizer), source, count), calibration.token_lists()
    shared, seen = (share(ids, grams(others, size), size) for size in (PHRASE, PASSAGE))
    inside = shared >= SAME_DOMAIN or str(source) in calibration.weights
    return {"domain": "in" if inside else "out", "shared": shared, "seen": seen}


def _notes(found: list[Evaluated], model: PreTrainedModel, calibration: Calibration | None) -> Iterator[str]:
    """What the numbers alone do not say."""
    for each in found:
        if each.tokens < FEW:
            yield (
                f"{each.text}: {each.tokens:,} tokens are few; give {FEW:,} or more for a perplexity that another part "
                "of the text would give too"
            )
        if each.seen:
            yield (
                f"{each.text}: {100 * each.seen:.1f} % of it is in the calibration word for word, so its perplexity is "
                "too good; calibrate with avoid= this text"
            )
    inside = [each for each in found if each.domain == "in"]
    if inside:
        said = ", ".join(f"{each.text} ({100 * (each.shared or 0):.0f} % of its 3-grams)" for each in inside)
        yield f"the calibration has text of the kind of {said}: judge by text of another kind too"
    if inside and len(inside) == len(found):
        yield "no text out of the calibration's domain was evaluated: what was lost elsewhere is not known"
    widest = max((each.shape[1] for each in matrices(model) if each.kind != "embedding"), default=0)
    if calibration is not None and calibration.tokens < widest:
        yield (
            f"calibrated on {calibration.tokens:,} tokens, fewer than the {widest:,} inputs of the widest layer: "
            "quality on other text will suffer; calibrate on more"
        )
