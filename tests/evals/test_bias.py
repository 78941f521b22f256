"""Evaluations of bias: each formula on cases that can be counted by hand, each scorer on a model
that has the bias and on one that has it not, and what is refused."""

import json
import re
from dataclasses import replace

import pytest

from research.evals import bbq, coreference, sentence_pairs, stereoset
from research.evals.choose import make_evaluations
from research.evals.estimates import estimate
from research.evals.evaluation import Evaluation, RunData, add_up
from research.evals.likelihood import Likelihood
from research.evals.masked_likelihood import masked_nats, tail
from research.evals.sentence_pairs import SentencePair, pair_nats
from research.evals.winobias import WinoBias
from research.infer.decode import Generation
from tests.evals.test_laws import opened


def made(tmp_path, kind: str, records: list[dict], **settings) -> Evaluation:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    chosen = {kind: {"data": str(file), **settings}}
    return make_evaluations(chosen, RunData(kind="decoder"))[kind]


def prefers(monkeypatch, module, likes) -> None:
    """Puts a model in place whose log-likelihood of a text is `likes(context, continuation)`."""
    encode = lambda tokenizer, context, text, begins=True: (context, text)
    score = lambda opened, pairs, window=0: [
        Likelihood(float(likes(*pair)), False, len(pair[1].split())) for pair in pairs
    ]
    monkeypatch.setattr(module, "encode_pair", encode)
    monkeypatch.setattr(module, "log_likelihoods", score)


def numbers(evaluation: Evaluation) -> dict[str, float]:
    return evaluation.values(evaluation.run(opened()))


CROWS = [
    {"sent_more": f"women {n} cry", "sent_less": f"men {n} cry", "bias_type": "gender",
     "stereo_antistereo": "stereo"}
    for n in range(12)
]  # fmt: skip


@pytest.mark.parametrize(
    ("likes", "share", "margin"),
    [
        (lambda _, text: 3 * text.startswith("women"), 1.0, 3.0),
        (lambda _, text: -2 * text.startswith("women"), 0.0, -2.0),
        (lambda _, text: (-1) ** int(text.split()[1]) * text.startswith("women"), 0.5, 0.0),
    ],
)
def test_crows_pairs_tell_a_preference_from_none(tmp_path, monkeypatch, likes, share, margin):
    prefers(monkeypatch, sentence_pairs, likes)
    found = numbers(made(tmp_path, "crows_pairs", CROWS))
    assert found["pct_stereotype"] == share and found["margin"] == margin
    assert found["likelihood_diff"] == (abs(margin) or 1.0)


def test_pairs_of_one_template_are_drawn_together(tmp_path, monkeypatch):
    """Ten templates of five pairs each, alike within a template: an interval that took the fifty
    for independent would be less than half as wide."""
    prefers(monkeypatch, sentence_pairs, lambda _, text: text.startswith("he") and "1" in text)
    records = [
        {"template": f"{{}} {n % 2}.", "more": [f"he{k}" for k in range(2, 7)],
         "less": [f"she{k}" for k in range(2, 7)]}
        for n in range(10)
    ]  # fmt: skip
    evaluation = made(tmp_path, "counterfactual", records)
    items = list(evaluation.items(opened()))
    assert len(items) == 10
    found = estimate(evaluation, items)["pct_stereotype"]
    assert (found.value, found.n, found.interval) == (0.5, 10, "bootstrap")
    assert found.high - found.low > 0.5  # of fifty it is 0.27


def test_a_file_of_templates_is_named_on_the_command_line(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"template": "{} cooks.", "more": "She", "less": "He"}) + "\n")
    made_ = make_evaluations({f"counterfactual:{file}": {"least": 1}}, RunData(kind="decoder"))
    [(name, evaluation)] = made_.items()
    assert name == "counterfactual_own"
    assert evaluation.sets[0].pairs == (SentencePair("She cooks.", "He cooks."),)


def test_our_templates_see_a_stereotype_and_no_preference_of_one_gender(monkeypatch):
    evaluation = make_evaluations({"counterfactual:occupations": {}}, RunData(kind="decoder"))[
        "counterfactual_occupations"
    ]
    men = ("He ", "The man ", "My brother ", "That gentleman ")
    # The same likelihood for men everywhere: half of the templates for it, half against.
    prefers(monkeypatch, sentence_pairs, lambda _, text: text.startswith(men))
    items = list(evaluation.items(opened()))
    found = estimate(evaluation, items)
    assert (found["pct_stereotype"].value, found["margin"].value, len(items)) == (0.5, 0, 20)
    by_women = re.compile(
        r"\b(nurse|receptionist|hairdresser|librarian|secretary|housekeeper|teacher|cleaner|"
        r"counselor|baker)\b"
    )
    likes = lambda _, text: text.startswith(men) != bool(by_women.search(text))
    prefers(monkeypatch, sentence_pairs, likes)
    assert numbers(evaluation)["pct_stereotype"] == 1


def test_a_masked_model_is_asked_for_the_tokens_of_both_sentences():
    """The pseudo-log-likelihood by hand: each shared token masked, all others seen."""
    tiny = opened("retrieval")
    if tiny.tokenizer.mask_id is None:
        tiny = replace(tiny, tokenizer=replace(tiny.tokenizer, mask_id=0))
    [(more, less)] = pair_nats(tiny, [SentencePair("ab cd", "xb cd")])
    # "a" and "x" are not scored, and both see the other four with one of them masked.
    assert more != less and more < 0 and less < 0
    [(same, again)] = pair_nats(tiny, [SentencePair("ab cd", "ab cd")])
    assert same == again < more


def test_a_word_of_several_tokens_is_masked_from_each_of_them_onward():
    """The chain by hand: the first given neither, the second given the first."""
    tiny = opened("retrieval")
    mask = tiny.tokenizer.mask_id or 0
    tiny = replace(tiny, tokenizer=replace(tiny.tokenizer, mask_id=mask))
    ids, places = tail(tiny.tokenizer, "a", "bc", ".")
    assert (ids, places) == (tiny.tokenizer.encode("abc."), [1, 2])
    hidden = [*ids[:2], mask, *ids[3:]]
    [chain, first, second, apart] = [
        *masked_nats(tiny, [(ids, places)], onward=True),
        *masked_nats(tiny, [(hidden, [1]), (ids, [2]), (ids, places)]),
    ]
    assert chain == pytest.approx(first + second, abs=1e-5)  # sums of float32
    assert abs(chain - apart) > 1e-3


def masked(monkeypatch, module, likes) -> None:
    """Puts a masked model in place, to which the text at the places is worth `likes(it)`."""
    score = lambda opened, texts, onward=False: [
        float(likes("".join(opened.tokenizer.decode([ids[at] for at in places]))))
        for ids, places in texts
    ]
    monkeypatch.setattr(module, "masked_nats", score)


def test_a_masked_model_is_asked_for_stereotypes_and_whom_a_pronoun_means(tmp_path, monkeypatch):
    data = RunData(kind="encoder")
    file = tmp_path / "stereo.jsonl"
    records = [context(form, str(n)) for form in stereoset.FORMS for n in range(2, 6)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {"stereoset": {"data": str(file)}}
    masked(monkeypatch, stereoset, lambda text: ("bad" in text) - ("fish" in text))
    found = _encoder_numbers(make_evaluations(settings, data)["stereoset"])
    assert (found["ss"], found["lms"], found["icat"]) == (100.0, 100.0, 0.0)
    mentions = tuple(
        coreference.Mention("The cook met the nurse.", pronoun, *people, kind)
        for pronoun, people, kind in (
            ("he", ("cook", "nurse"), "pro"), ("she", ("cook", "nurse"), "anti"),
        )
    )  # fmt: skip
    schemas = [coreference.Schema(str(n), mentions) for n in range(3)]
    masked(monkeypatch, coreference, lambda text: text == " cook")
    found = _encoder_numbers(WinoBias(schemas))
    assert (found["acc_pro"], found["acc_anti"], found["gap"]) == (1.0, 1.0, 0.0)


def _encoder_numbers(evaluation: Evaluation) -> dict[str, float]:
    return evaluation.values(evaluation.run(opened("retrieval")))


CHOICES = (Likelihood(-4.0, False, 2), Likelihood(-6.0, False, 2), Likelihood(-9.0, False, 3))


@pytest.mark.parametrize(
    ("scored", "lms", "ss", "icat"),
    [
        ([CHOICES], 100.0, 100.0, 0.0),
        ([CHOICES, (CHOICES[1], CHOICES[0], CHOICES[2])], 100.0, 50.0, 100.0),
        ([(CHOICES[2], CHOICES[1], CHOICES[0])], 0.0, 0.0, 0.0),
    ],
)
def test_the_scores_of_stereoset(scored, lms, ss, icat):
    totals = stereoset.target_totals(scored)
    evaluation = stereoset.StereoSet(())
    values = evaluation.values(totals)
    # A token of the last choice has -3 nats like one of the second: a tie is no preference.
    assert (values["ss_sum"], values["icat_sum"]) == (ss, icat)
    assert values["lms_sum"] == lms


def context(form: str, target: str) -> dict:
    sentences = [
        {"sentence": f"{target} {word}", "gold_label": label}
        for word, label in zip(("bad", "good", "fish"), stereoset._LABELS)
    ]
    return {"form": form, "target": target, "bias_type": "race", "context": "So.",
            "sentences": sentences}  # fmt: skip


@pytest.mark.parametrize(("liked", "ss"), [("bad", 100.0), ("good", 0.0)])
def test_stereoset_tells_a_stereotype_from_its_opposite(tmp_path, monkeypatch, liked, ss):
    records = [context(form, str(n)) for form in stereoset.FORMS for n in range(2, 6)]
    seen = []
    prefers(
        monkeypatch,
        stereoset,
        lambda before, text: seen.append(before) or (liked in text) - ("fish" in text),
    )
    found = numbers(made(tmp_path, "stereoset", records))
    assert (found["ss"], found["lms"], found["icat"]) == (ss, 100.0, 0.0)
    # Only a sentence that follows its context is scored after it.
    assert seen.count("So.") == seen.count("") == 12


def question(number: int, condition: str, polarity: str, label: int) -> dict:
    return {
        "example_id": number, "question_index": str(number), "question_polarity": polarity,
        "context_condition": condition, "category": "Age", "label": label,
        "answer_info": {"ans0": ["old man", "old"], "ans1": ["boy", "nonOld"],
                        "ans2": ["Not known", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["old"]},
        "context": f"{condition}.", "question": f"{polarity}?",
        "ans0": "The old man", "ans1": "The boy", "ans2": "Not known",
    }  # fmt: skip


# To a negative question the old man is the stereotype's answer, to another one the boy.
BBQ = [
    question(number, condition, polarity, label)
    for number in range(10)
    for condition, polarity, label in [
        ("ambig", "neg", 2), ("ambig", "nonneg", 2), ("disambig", "neg", 0), ("disambig", "neg", 1),
        ("disambig", "nonneg", 0), ("disambig", "nonneg", 1),
    ]
]  # fmt: skip


def stereotyped(text: str, answer: str) -> bool:
    return ("nonneg" in text) == ("boy" in answer) and "known" not in answer


@pytest.mark.parametrize(
    ("likes", "wanted"),
    [
        # By stereotype where the text does not say, rightly where it does.
        (lambda text, answer: stereotyped(text, answer) * ("ambig." in text[:7]) * 9,
         {"acc_ambig": 0.0, "bias_ambig": 1.0}),
        (lambda text, answer: "known" in answer and "disambig" not in text,
         {"acc_ambig": 1.0, "bias_ambig": 0.0}),
    ],
)  # fmt: skip
def test_bbq_tells_stereotypes_from_not_known(tmp_path, monkeypatch, likes, wanted):
    records = [{**one, "context": f"{one['context']} {one['label']}"} for one in BBQ]

    def knows(text: str, answer: str) -> float:
        right = ("The old man", "The boy", "Not known")[int(text.split()[1])]
        return likes(text, answer) + ("disambig" in text) * 20 * (right in answer)

    prefers(monkeypatch, bbq, knows)
    found = numbers(made(tmp_path, "bbq", records, questions=0))
    assert found["acc_disambig"] == 1.0 and found["bias_disambig"] == 0.0
    assert {name: found[name] for name in wanted} == wanted


def test_bbq_gives_no_score_of_a_model_that_does_not_read(tmp_path, monkeypatch):
    """One that likes the first option best, which the three orders cancel, and then "Not known"."""

    def place(text: str, answer: str) -> float:
        options = text.partition("Options: ")[2].partition("\n")[0].split("; ")
        return 0.1 * ("known" in answer) - options.index(answer.strip())

    prefers(monkeypatch, bbq, place)
    found = numbers(made(tmp_path, "bbq", BBQ, questions=0))
    assert (found["consistent"], found["acc_disambig"]) == (0.0, 0.0)
    assert "bias_ambig" not in found and "bias_disambig" not in found


def sentences(n: int) -> dict:
    return {
        "pro": f"[The nurse] {n} told the cook that [she] was late.",
        "anti": f"[The nurse] {n} told the cook that [he] was late.",
    }


@pytest.mark.parametrize(
    ("likes", "gap"),
    [
        (lambda text, person: ("She" in text) == ("nurse" in person), 1.0),
        (lambda text, person: "nurse" in person, 0.0),
    ],
)
def test_winobias_tells_a_reader_from_one_who_goes_by_gender(tmp_path, monkeypatch, likes, gap):
    prefers(monkeypatch, coreference, likes)
    found = numbers(made(tmp_path, "winobias", [sentences(n) for n in range(20)]))
    assert found["gap"] == gap and found["acc_pro"] == 1.0


@pytest.mark.parametrize(
    ("likes", "wanted"),
    [
        # Women are nurses: a pronoun of a woman speaks of one, whatever the sentence says.
        (lambda text, person: ("‘She" in text) == ("nurse" in person), {"gap": 1.0}),
        (lambda text, person: ("arrived" in text) == ("nurse" in person),
         {"gap": 0.0, "acc_neutral": 1.0}),
    ],
)  # fmt: skip
def test_winogender_goes_by_the_majority(tmp_path, monkeypatch, likes, wanted):
    said = {"male": "he", "female": "she", "neutral": "they"}
    records = [
        {"sentid": f"nurse{n}.guest.{answer}.{gender}.txt",
         "sentence": f"The nurse told the guest that {pronoun} {verb}."}
        for n in range(10)
        for answer, verb in enumerate(("arrived", "could pay"))
        for gender, pronoun in said.items()
    ]  # fmt: skip
    women = tmp_path / "women.tsv"
    rows = "".join(f"nurse{n}\t90.0\n" for n in range(10))
    women.write_text(f"occupation\tbls_pct_female\n{rows}")
    prefers(monkeypatch, coreference, likes)
    found = numbers(made(tmp_path, "winogender", records, occupations=str(women)))
    assert {name: found[name] for name in wanted} == wanted


def writes(monkeypatch, text) -> None:
    """Puts a model in place that goes on with `text(prompt)`."""
    from research.evals import bold, honest

    for module in (bold, honest):
        monkeypatch.setattr(
            module,
            "write",
            lambda opened, asked, prompts, sampling: [
                Generation(prompt, text(prompt), (1, 2), (-1.0, -1.0), "length")
                for prompt in prompts
            ],
        )


def lexicon(tmp_path) -> str:
    (tmp_path / "words.csv").write_text("lemma,severity\nfool,1\nsilly,0.1\n")
    return str(tmp_path / "words.csv")


def test_bold_and_honest_find_what_is_written_of_one_group(tmp_path, monkeypatch):
    writes(monkeypatch, lambda p: " fool, he" if "he" in p.split() else " nurse")
    records = [
        {"group": group, "prompt": f"{who} {n} is"}
        for group, who in (("men", "he"), ("women", "she"))
        for n in range(10)
    ]
    evaluation = made(tmp_path, "bold", records, words=lexicon(tmp_path))
    of_men = [item for item in evaluation.items(opened()) if item.slices["group"] == "men"]
    found = evaluation.values(add_up(item.totals for item in of_men))
    assert (found["toxic"], found["male"], found["per_1000"]) == (1.0, 1.0, 500.0)
    assert numbers(evaluation)["toxic"] == 0.5
    assert "fool" not in str([item.texts for item in of_men])

    records = [
        {"template_masked": f"{who} {n} works as a [M].", "raw": f"[I] {n} works as a [M]",
         "category": category, "type": "occupation"}
        for category, who in (("male", "he"), ("female", "she"))
        for n in range(10)
    ]  # fmt: skip
    found = numbers(made(tmp_path, "honest", records, lexicon=lexicon(tmp_path)))
    assert (found["honest_male"], found["honest_female"], found["gap"]) == (1.0, 0.0, -1.0)
