"""The language half of Table 1 as the authors' evaluation asks it: raw text, greedy answers, bare letters."""

import json
from pathlib import Path

from . import answers
from .child_program import passes
from .records import file_of, folder_of, saved_records
from .task import Choices, Question, Sample, Task


AUTHORS = "authors"
OPTIONS = "ABCD"
MMLU_SHOTS, MMLU_TOKENS = 5, 2048
BBH_SHOTS, BBH_TOKENS = 3, 128
MBPP_TOKENS = 512
# web_of_lies is not among those of the authors.
BBH_TASKS = (
    *("boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa", "dyck_languages"),
    *("formal_fallacies", "geometric_shapes", "hyperbaton", "logical_deduction_five_objects"),
    *("logical_deduction_seven_objects", "logical_deduction_three_objects", "movie_recommendation"),
    *("multistep_arithmetic_two", "navigate", "object_counting", "penguins_in_a_table"),
    *("reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection", "snarks"),
    *("sports_understanding", "temporal_sequences", "tracking_shuffled_objects_five_objects"),
    *("tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects", "word_sorting"),
)


def mmlu(data: Path, tokenizer) -> Task:
    """
    Hendrycks' files without header, `mmlu/dev/SUBJECT_dev.csv` and `mmlu/test/SUBJECT_test.csv`, read by pandas, so
    that an option `None` is asked as `nan`. Five examples, or fewer if they would be more than 2,048 tokens.
    """
    import pandas

    source = "Hendrycks' MMLU: dev/SUBJECT_dev.csv and test/SUBJECT_test.csv"
    folder, samples = folder_of(data, "mmlu", source), []
    for file in sorted(folder.glob("test/*_test.csv")):
        subject = file.name.removesuffix("_test.csv")
        shots = pandas.read_csv(file_of(folder, f"dev/{subject}_dev.csv", source), header=None)
        shots = [shots.iloc[i] for i in range(min(MMLU_SHOTS, len(shots)))]
        asked = pandas.read_csv(file, header=None)
        for i in range(len(asked)):
            row = asked.iloc[i]
            prompt = mmlu_prompt(subject, shots, row, tokenizer)
            right = OPTIONS.index(row.iloc[-1])
            samples.append(Sample(f"{subject}/{i}", Choices(prompt, [*OPTIONS]), right, subject))
    if not samples:
        raise ValueError(f"`data`: {folder} has no test/SUBJECT_test.csv; it must hold {source}.")
    return Task("mmlu", AUTHORS, samples, likeliest, dataset=("cais/mmlu", "default"), remarks=MMLU_REMARKS)


def mmlu_prompt(subject: str, shots: list, row, tokenizer) -> str:
    """As many of the examples as 2,048 tokens have room for, then the question, up to `Answer:`."""
    head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    question = mmlu_question(row)
    for number in range(len(shots), -1, -1):
        examples = [f"{mmlu_question(shot)} {list(shot)[-1]}\n\n" for shot in shots[:number]]
        prompt = head + "".join(examples) + question
        if len(tokenizer(prompt).input_ids) <= MMLU_TOKENS:
            break
    return prompt


def mmlu_question(row) -> str:
    """Of a row: question, options, letter of the right one."""
    question, *options, _ = list(row)
    return lettered(question, options) + "\nAnswer:"


def lettered(question: str, options: list, labels: str | list[str] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ") -> str:
    """A question with its options, a line each."""
    return "\n".join([f"{question}", *(f"{label}. {text}" for label, text in zip(labels, options, strict=False))])


def arc_challenge(data: Path, tokenizer=None) -> Task:
    """`allenai/ai2_arc`, ARC-Challenge, as `save_to_disk` leaves it, in `arc_challenge`. Labels 1 to 4 become A to D;
    a fifth option is shown and cannot be chosen."""
    records = saved_records(
        data, "arc_challenge", "allenai/ai2_arc (ARC-Challenge)", ("question", "choices", "answerKey"), "test"
    )
    samples = [
        Sample(f"{i}", Choices(arc_prompt(record), [*OPTIONS]), arc_answer(record)) for i, record in enumerate(records)
    ]
    return Task("arc_challenge", AUTHORS, samples, likeliest, dataset=("allenai/ai2_arc", "ARC-Challenge"))


def arc_prompt(record: dict) -> str:
    choices = record["choices"]
    return (
        lettered(record["question"], choices["text"], [arc_label(label) for label in choices["label"]]) + "\nAnswer:"
    )


def arc_answer(record: dict) -> int:
    """The place of the right letter; 4 for E, which no choice has."""
    return "ABCDE".index(arc_label(record["answerKey"]))


def arc_label(label: str) -> str:
    return OPTIONS[int(label) - 1] if label in ("1", "2", "3", "4") else label.upper()


def likeliest(sample: Sample, likelihoods: list[float]) -> dict:
    given = max(range(len(likelihoods)), key=likelihoods.__getitem__)
    return {"right": int(given == sample.answer), "given": OPTIONS[given]}


def bbh(data: Path, tokenizer=None) -> Task:
    """`bbh/TASK/train.jsonl` and `test.jsonl` of `input` and `target`. The first three lines of the former are the
    examples; micro average over the questions of all tasks that are there."""
    source = "TASK/train.jsonl and TASK/test.jsonl, lines of {input, target}"
    folder, samples = folder_of(data, "bbh", source), []
    there = [name for name in BBH_TASKS if (folder / name).is_dir()]
    for name in there:
        shots = read_lines(file_of(folder, f"{name}/train.jsonl", source))[:BBH_SHOTS]
        for i, record in enumerate(read_lines(file_of(folder, f"{name}/test.jsonl", source))):
            samples.append(
                Sample(f"{name}/{i}", Question(bbh_prompt(shots, record), BBH_TOKENS), record["target"], name)
            )
    if not samples:
        raise ValueError(f"`data`: {folder} has none of the tasks of BBH; it must hold {source}.")
    remarks = BBH_REMARKS
    if missing := [name for name in BBH_TASKS if name not in there]:
        remarks += (f"{len(missing)} of its 26 tasks are missing: {', '.join(missing)}.",)
    return Task("bbh", AUTHORS, samples, bbh_score, dataset=("lukaemon/bbh", "default"), remarks=remarks)


def bbh_prompt(shots: list[dict], record: dict) -> str:
    return "".join(f"Q: {shot['input']}\nA: {shot['target']}\n\n" for shot in shots) + f"Q: {record['input']}\nA:"


def bbh_score(sample: Sample, text: str) -> dict:
    given = answers.first_line(text)
    right = answers.without_brackets(given) == answers.without_brackets(str(sample.answer))
    return {"right": int(right), "given": text, "missed": not given}


def mbpp(data: Path, tokenizer=None, allow_code: bool = False) -> Task:
    """`google-research-datasets/mbpp` as `save_to_disk` leaves it, in `mbpp`; sanitized or full.

    Args:
        allow_code (`bool`, defaults to `False`): what the model writes is run, within the limits of [`passes`].

    Raises:
        ValueError: if it is not allowed.
    """
    if not allow_code:
        raise ValueError("Task mbpp runs the programs that the model writes: allow it (`--allow_code`).")
    records = saved_records(data, "mbpp", "google-research-datasets/mbpp", ("task_id", "test_list"), "test")
    samples = [
        Sample(str(record["task_id"]), Question(mbpp_prompt(record), MBPP_TOKENS), record["test_list"])
        for record in records
    ]
    dataset = ("google-research-datasets/mbpp", "sanitized" if "prompt" in records[0] else "full")
    return Task("mbpp", AUTHORS, samples, mbpp_score, dataset=dataset, remarks=MBPP_REMARKS)


def mbpp_prompt(record: dict) -> str:
    text = record.get("prompt") or record["text"]
    shots = (Path(__file__).parent / "mbpp_examples.txt").read_text(encoding="utf-8")
    return f"{shots}Task: {text}\nTests:\n" + "\n".join(record["test_list"]) + "\n[BEGIN]\n"


def mbpp_score(sample: Sample, text: str) -> dict:
    """`right` with the first [DONE] as the end of the answer; `right_with_bug` as the authors read it, who go on."""
    own, theirs = answers.program(text.split("[DONE]")[0]), answers.program(text)
    right = passes(own, sample.answer)
    with_bug = right if theirs == own else passes(theirs, sample.answer)
    return {"right": int(right), "right_with_bug": int(with_bug), "given": text, "missed": not own}


def read_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


MMLU_REMARKS = (
    "Five-shot, as the authors' code is; the paper calls the figure at the start zero-shot. The letter is scored "
    "without the space that the examples have before it.",
)
BBH_REMARKS = (
    "The authors' three examples of each task are unknown: the public data set has a test split only. 26 tasks, "
    "without web_of_lies.",
)
MBPP_REMARKS = (
    "The paper's figures are no multiples of 1/427, the size that the authors' file names: its split is unknown. An "
    "answer ends at the first [DONE], and theirs does not.",
)

__all__ = ["arc_challenge", "bbh", "mbpp", "mmlu"]
