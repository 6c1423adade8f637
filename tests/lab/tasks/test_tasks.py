import hashlib
import math

import pytest
import torch

from weightcast_lab.errors import LabError
from weightcast_lab.tasks import TASKS, DataSource, make_task
from weightcast_lab.tasks.docs_text import character_corpus
from weightcast_lab.tasks.language import perplexity
from weightcast_lab.tasks.networks.lstm import LSTMLanguageModel
from weightcast_lab.tasks.ptb import PUBLISHED, read_words, word_corpus

GENERATOR = torch.Generator()


def test_digits_split_is_fixed_and_whole():
    task = make_task("digits", DataSource())
    again = make_task("digits", DataSource())
    assert task.facts == again.facts
    assert len(task.training[1]) == 1200
    images = torch.cat([task.training[0], task.validation[0]])
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min(), images.max()) == (-1, 1)
    assert torch.equal(task.validation[0], again.validation[0])
    # stratified: each digit is a tenth of either part
    assert task.validation[1].bincount().min() > 50


def test_digits_loss_of_a_know_nothing_is_log_ten():
    task = make_task("digits", DataSource())
    model = task.build_model().eval()
    for parameter in model[-1].parameters():
        torch.nn.init.zeros_(parameter)
    loss, accuracy = task.evaluate(model)
    assert loss == pytest.approx(math.log(10))
    assert 5 < accuracy < 15


@pytest.mark.parametrize("name", ["digits", "small_text", "text"])
def test_tasks_with_data_of_their_own_take_no_folder(name, tmp_path):
    with pytest.raises(LabError, match="carries its own data"):
        make_task(name, DataSource(tmp_path))
    with pytest.raises(LabError, match="carries its own data"):
        make_task(name, DataSource(any_text=True))


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(LabError, match="did you mean 'digits'"):
        make_task("digit", DataSource())
    assert set(TASKS) == {"cifar10", "digits", "small_text", "text", "ptb", "ptb_characters"}


def test_the_first_task_is_the_text_in_windows_that_the_seed_draws():
    """The default of `weightcast compare`: 600 steps of 16 windows of 64 characters."""
    small, text = make_task("small_text", DataSource()), make_task("text", DataSource())
    batches = small.batches(small.preset.batch_size, torch.Generator().manual_seed(0))
    assert len(batches) * small.preset.epochs == 600
    assert batches[0][0].shape == (64, 16)
    other = small.batches(small.preset.batch_size, torch.Generator().manual_seed(1))
    assert not torch.equal(batches[0][0], other[0][0])
    # what is trained on, chosen by and tested with are apart, and all of the text
    parts = (small.corpus.training, small.corpus.validation, small.corpus.test)
    whole = torch.cat((text.corpus.training, text.corpus.validation))
    assert torch.equal(torch.cat(parts), whole)


def test_characters_are_numbered_in_order_and_the_last_tenth_validates():
    corpus = character_corpus("name", "abcabcabca" + "cb")
    assert corpus.vocabulary == 3
    assert corpus.training.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 2]
    assert corpus.validation.tolist() == [1]
    assert corpus.facts() != character_corpus("name", "abcabcabca" + "cc").facts()


def test_bits_per_character_are_the_loss_to_base_two():
    task = make_task("text", DataSource())
    torch.manual_seed(0)
    model = task.build_model().eval()
    for parameter in model.output.parameters():
        torch.nn.init.zeros_(parameter)
    loss, bits = task.evaluate(model)
    assert loss == pytest.approx(math.log(task.facts["vocabulary"]), rel=1e-6)
    assert bits == pytest.approx(math.log2(task.facts["vocabulary"]), rel=1e-6)


def test_words(small_text):
    corpus = word_corpus(small_text, any_text=True)
    # the dog sat <unk> <eos> the cat sat <unk> <eos>
    assert corpus.training[:10].tolist() == [0, 1, 2, 3, 4, 0, 5, 2, 3, 4]
    assert (len(corpus.training), len(corpus.validation), len(corpus.test)) == (300, 75, 100)
    assert corpus.vocabulary == 6
    assert "not Penn Treebank" in corpus.name


def test_unknown_words_are_unk_or_refused(small_text):
    with (small_text / "ptb.test.txt").open("a") as file:
        file.write(" zebra \n")
    assert word_corpus(small_text, any_text=True).test[-2:].tolist() == [3, 4]
    for path in small_text.iterdir():
        path.write_text(path.read_text().replace("<unk>", "mat"))
    with pytest.raises(LabError, match="zebra"):
        word_corpus(small_text, any_text=True)


def test_windows_cover_every_stream_once(small_text):
    task = make_task("ptb", DataSource(small_text, any_text=True))
    batches = task.batches(4, GENERATOR)
    tokens = torch.cat([x for x, _ in batches])
    targets = torch.cat([y for _, y in batches])
    streams = task.corpus.training.view(4, 75).t()
    assert torch.equal(tokens, streams[:-1])
    assert torch.equal(targets, streams[1:])
    assert all(len(x) <= task.shape.window for x, _ in batches)


def test_windows_carry_the_state():
    torch.manual_seed(0)
    model = LSTMLanguageModel(5, units=7, layers=2, dropout=0.5).eval()
    tokens = torch.randint(5, (9, 3))
    whole, _ = model(tokens)
    first, state = model(tokens[:4])
    second, _ = model(tokens[4:], state)
    assert torch.allclose(torch.cat([first, second]), whole, atol=1e-6)
    assert not state[0].requires_grad


def test_a_text_that_is_too_short_to_judge_by_is_refused_at_once(small_text):
    with pytest.raises(LabError, match="15 tokens is too short to be judged by: it needs 20"):
        make_task("ptb", DataSource(small_text, any_text=True), validation_tokens=15)


def test_too_many_streams_are_refused(small_text):
    task = make_task("ptb", DataSource(small_text, any_text=True))
    with pytest.raises(LabError, match="--batch-size"):
        task.batches(200, GENERATOR)


def test_perplexity():
    assert perplexity(math.log(123)) == pytest.approx(123)
    assert perplexity(1e6) == math.inf


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "ptb.valid.txt").unlink(), "ptb.valid.txt is missing"),
        (lambda folder: (folder / "ptb.valid.txt").write_text(""), "is empty"),
        (lambda folder: (folder / "ptb.valid.txt").write_text(" \n\n"), "is empty"),
        (lambda folder: (folder / "ptb.valid.txt").write_bytes(b"ab\xff"), "not UTF-8"),
    ],
)
def test_unusable_files_are_refused_even_as_any_text(small_text, damage, sentence):
    damage(small_text)
    with pytest.raises(LabError, match=sentence):
        word_corpus(small_text, any_text=True)


def test_another_text_is_refused_and_the_way_out_named(small_text):
    with pytest.raises(LabError, match=r"truncated.*240 words.*887,521.*--any-text"):
        word_corpus(small_text, any_text=False)
    (small_text / "ptb.train.txt").write_text("a " * 900_000)
    with pytest.raises(LabError, match=r"another text.*--any-text"):
        word_corpus(small_text, any_text=False)


def test_the_folder_must_be_one(small_text):
    with pytest.raises(LabError, match="is not a folder"):
        word_corpus(small_text / "ptb.train.txt", any_text=True)
    with pytest.raises(LabError, match="needs --data"):
        make_task("ptb", DataSource())


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_the_published_text_is_known_by_its_words(tmp_path, monkeypatch, line_end):
    content = b" no it was n't \n a <unk> day \n"
    published = (7, hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(PUBLISHED, "ptb.test.txt", published)
    path = tmp_path / "ptb.test.txt"
    path.write_bytes(content.replace(b"\n", line_end.encode()))
    words, is_published = read_words(path, any_text=False)
    assert is_published
    assert words == ["no", "it", "was", "n't", "<eos>", "a", "<unk>", "day", "<eos>"]


def test_the_rarest_words_become_unknown_ones(small_text):
    """the and <unk> and sat and <eos> are in every line, cat in two of three, dog in one."""
    corpus = word_corpus(small_text, any_text=True, size=5)
    assert corpus.vocabulary == 5
    # the <unk> sat <unk> <eos> the cat sat <unk> <eos>
    assert corpus.training[:10].tolist() == [0, 2, 1, 2, 3, 0, 4, 1, 2, 3]
    task = make_task("ptb", DataSource(small_text, any_text=True), vocabulary=5)
    assert task.facts["vocabulary"] == 5
    with pytest.raises(LabError, match="vocabulary=0 is not possible"):
        make_task("ptb", DataSource(small_text, any_text=True), vocabulary=0)


def test_the_documentation_can_be_read_by_a_transformer_and_in_part():
    whole = make_task("text", DataSource())
    part = make_task("text", DataSource(), network="transformer", training_tokens=5_000)
    assert (part.facts["network"], part.facts["training tokens"]) == ("transformer", 5_000)
    assert "network" not in whole.facts  # results of the LSTM go on as they were
    assert torch.equal(part.corpus.training, whole.corpus.training[:5_000])
    model = part.build_model()
    (tokens, targets), *_ = part.batches(16, GENERATOR)
    loss, carried = part.loss(model, (tokens, targets), None)
    assert loss.item() == pytest.approx(math.log(part.facts["vocabulary"]), rel=0.05)
    assert carried is None
    with pytest.raises(LabError, match="did you mean 'transformer'"):
        make_task("text", DataSource(), network="transfomer")
    with pytest.raises(LabError, match="training_tokens=9,000,000 is not possible"):
        make_task("text", DataSource(), training_tokens=9_000_000)
