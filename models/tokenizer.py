"""A byte-level BPE tokenizer of our own (Radford et al. 2019, section 2.2)."""

from __future__ import annotations

from collections.abc import Iterable

from config import InputError

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(documents: Iterable[str], vocab_size: int, n_positions: int):
    """Learns merges from documents.

    Args:
        vocab_size: entries, 256 bytes and the end-of-text token included.
        n_positions: the context of the model it is for.

    Returns:
        A stock fast GPT-2 tokenizer, which `AutoTokenizer` loads once saved.

    Raises:
        InputError: the documents do not hold as many pieces.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import GPT2TokenizerFast  # seconds to import

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer)
    if bpe.get_vocab_size() != vocab_size:
        raise InputError(f"--vocab_size {vocab_size}: the text gives only {bpe.get_vocab_size()} entries")
    return GPT2TokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=n_positions,
    )
