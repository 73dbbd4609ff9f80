"""The data that the examples make, and what they count, are what they say."""

import datetime

import numpy as np

from .test_examples import load


def test_kinds_of_source_are_those_of_its_tokens():
    label = load("label_source")
    source = 'if x1 >= 0x2F:  # why\n    y = r"""a\nb"""\n'
    expected = "KKSNNSOOSDDDDOSSCCCCCSSSSSNSOSTTTTTTTTTTS"
    letters = {"K": "keyword", "S": "space", "N": "name", "O": "operator", "D": "number",
               "C": "comment", "T": "string"}  # fmt: skip
    assert [label.KINDS[k] for k in label.kinds_of(source)] == [letters[c] for c in expected]


def test_the_glyph_moves_as_its_label_says_and_goes_on_while_it_is_hidden():
    frames = load("frames")
    x, moves = frames.videos(12, 40, np.random.default_rng(0))
    screens = (x.reshape(12, 40, 8, 8) > 0.5).astype(int)  # the noise is .1
    seen = screens.any(axis=(2, 3))
    assert 0.1 < (~seen).mean() < 0.3
    shifts = {0: (-1, 0), 1: (1, 0), 2: (0, -1), 3: (0, 1)}
    for n in range(40):
        moved = screens[0, n]
        for t in range(1, 12):
            moved = np.roll(moved, shifts[int(moves[t, n])], (0, 1))
            if seen[t, n]:
                np.testing.assert_array_equal(screens[t, n], moved)
            else:
                assert moves[t, n] == moves[t - 1, n]


def test_questions_differ_and_sums_are_right():
    addition = load("addition")
    x, y = addition.questions(2000, 3, np.random.default_rng(0))
    texts = [addition.VOCABULARY.decode(column) for column in x.T]
    pairs = [tuple(map(int, text.split("+"))) for text in texts]
    assert len({tuple(sorted(pair)) for pair in pairs}) == 2000
    assert {len(str(a)) for a, _ in pairs} == {1, 2, 3}
    assert [int(addition.VOCABULARY.decode(column)) for column in y.T] == [a + b for a, b in pairs]


def test_dates_differ_and_are_the_same_day():
    pairs = load("translate_dates").dates(2000, np.random.default_rng(0))
    assert len(set(pairs)) == 2000
    for written, iso in pairs:
        assert datetime.datetime.strptime(written, "%B %d, %Y").date().isoformat() == iso


def test_accuracies_count_whole_answers_and_characters():
    accuracies = load("translate_dates").accuracies
    a, b, c = np.array([1, 2, 3]), np.array([1, 2]), np.array([1, 2, 4, 5])
    assert accuracies([a, b, c], [a, a, a]) == (1 / 3, 7 / 9)


def test_an_alignment_has_a_row_for_each_character_and_one_for_the_end():
    dates = load("translate_dates")
    model = dates.translator(8, True, 0)
    source, answer = dates.SOURCE.encode("May 01, 1000"), dates.TARGET.encode("1000-05-01")
    head, *rows = dates.alignment(model, source, answer).splitlines()
    assert head.strip() == "May 01, 1000"
    assert [row.split("|")[0].strip() for row in rows] == [*"1000-05-01", "end"]
    assert {len(row.split("|")[1]) for row in rows} == {12}


def test_words_are_right_up_to_their_stop_and_whole_words_count_only_so():
    caption = load("caption_digits")
    one, three = 1, 3
    spelled = caption.SPELLED[:, [one, three]].copy()
    spelled[4:, 0] = 5  # after "one." nothing counts
    assert caption.accuracies(spelled, np.array([one, three])) == (1.0, 1.0)
    spelled[3, 0] = 5  # no stop
    assert caption.accuracies(spelled, np.array([one, three])) == (0.5, 9 / 10)


def test_the_speller_reads_its_own_letters():
    caption = load("caption_digits")
    model = caption.Captioner(8, np.random.default_rng(0)).eval()
    images = np.random.default_rng(1).random((5, 64), dtype=np.float32)
    spelled = model.spell(images, 6)
    before = np.concatenate([np.full((1, 5), caption.STOP), spelled[:-1]])
    np.testing.assert_array_equal(model(images, before).numpy().argmax(-1), spelled)


def test_cutting_the_state_is_running_each_frame_as_a_video_of_its_own():
    frames = load("frames")
    model = frames.Labeller(8, np.random.default_rng(0))
    x, _ = frames.videos(3, 2, np.random.default_rng(0))
    np.testing.assert_allclose(
        model.without_memory(x).numpy()[2, 1], model(x[2:, 1:]).numpy()[0, 0], rtol=1e-5
    )
