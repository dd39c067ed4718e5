"""Official files are read as they are, and what is wrong in one is said in a line with its place."""

from __future__ import annotations

import csv
import io
import json
import re

import pandas
import pytest

from ffnskip_cpp.evaluation.tasks import TASKS
from ffnskip_cpp.evaluation.tasks.mmlu_subjects import GROUPS


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def lines(*entries):
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def table(*rows):
    sink = io.StringIO()
    csv.writer(sink).writerows(rows)
    return sink.getvalue()


# ---- factoid ----


def freebase(*questions):
    listed = [
        {
            "Question-ID": f"Made-up-{i}",
            "RawQuestion": question,
            "ProcessedQuestion": question.lower(),
            "Parses": parses,
        }
        for i, (question, parses) in enumerate(questions)
    ]
    return json.dumps({"Dataset": "Made-up", "Version": "1.0", "Questions": listed}, indent=1)


def parse(*names):
    return {"Parse-Id": "P0", "Answers": [{"AnswersMid": "m.0", "AnswersName": list(names)}]}


def test_freebaseqa_json_has_several_answers(tmp_path):
    text = freebase(
        ("Who wrote Olm?", [parse("ada brin", "a. brin"), parse("ada brin")]), ("Where?", [parse("", "ul")])
    )
    first, second = TASKS["factoid"].read(write(tmp_path, "eval.json", text))
    assert (first.id, first.question, first.answers) == ("Made-up-0", "Who wrote Olm?", ("ada brin", "a. brin"))
    assert second.answers == ("ul",)
    row = text.split("\n").index('   "Question-ID": "Made-up-1",')  # whose object begins a line before it
    assert second.where == f"{tmp_path / 'eval.json'}:{row}"


def test_freebaseqa_text_has_an_answer_a_line(tmp_path):
    content = 'Which | is a bar? | a bar \n\n"The ""Duke"" of Ul, who is ""he""?" | olm\nThe Duke"? | olm\n'
    facts = TASKS["factoid"].read(write(tmp_path, "eval.txt", content))
    assert [(fact.question, fact.answers) for fact in facts] == [
        ("Which | is a bar?", ("a bar",)),
        ('The "Duke" of Ul, who is "he"?', ("olm",)),
        ('The Duke"?', ("olm",)),
    ]
    assert [fact.where.rsplit(":", 1)[1] for fact in facts] == ["1", "3", "4"]


def test_triviaqa_has_aliases(tmp_path):
    answer = {"Value": "Olm", "Aliases": ["Olm", "The Olm"], "NormalizedAliases": ["olm"], "NormalizedValue": "olm"}
    data = {"Domain": "Web", "Data": [{"QuestionId": "tc_1", "Question": "Which cave animal?", "Answer": answer}]}
    (fact,) = TASKS["factoid"].read(write(tmp_path, "web-dev.json", json.dumps(data)))
    assert (fact.id, fact.question, fact.answers) == ("tc_1", "Which cave animal?", ("Olm", "The Olm"))


def test_prompts_of_triviaqa_are_taken_apart(tmp_path):
    entry = {"context": "Question: Which cave animal?\nAnswer:", "answer": "Olm", "aliases": ["Proteus", "Olm", ""]}
    (fact,) = TASKS["factoid"].read(write(tmp_path, "t.jsonl", lines(entry)))
    assert (fact.question, fact.answers) == ("Which cave animal?", ("Olm", "Proteus", ""))


# ---- the others ----

ARTICLE = {"id": "a1", "article": "Olm the cat sat. " * 20, "highlights": "Olm sat."}


@pytest.mark.parametrize(
    ("n", "group"), [(1, "small"), (469, "small"), (470, "medium"), (789, "medium"), (790, "large")]
)
def test_stories_have_three_lengths(tmp_path, n, group):
    path = write(tmp_path, "cnn.jsonl", lines({"id": 1, "article": "word " * n, "highlights": ["One.", "Two."]}))
    (story,) = TASKS["summarize"].read(path)
    assert (story.group, story.id, story.highlights) == (group, "1", "One.\nTwo.")


def test_a_story_is_the_same_in_all_forms(tmp_path):
    pandas.DataFrame([ARTICLE]).to_parquet(tmp_path / "t.parquet")
    jsonl, table_ = lines(ARTICLE), table(["id", "article", "highlights"], ["a1", ARTICLE["article"], "Olm sat."])
    paths = [write(tmp_path, "t.jsonl", jsonl), write(tmp_path, "t.csv", table_), tmp_path / "t.parquet"]
    stories = [TASKS["summarize"].read(path)[0] for path in paths]
    assert {(s.id, s.group, s.article, s.highlights) for s in stories} == {
        ("a1", "small", ARTICLE["article"].strip(), "Olm sat.")
    }
    assert [story.where.rsplit("/", 1)[1] for story in stories] == ["t.jsonl:1", "t.csv:2", "t.parquet: row 1"]


def test_a_csv_field_may_be_long(tmp_path):
    (story,) = TASKS["summarize"].read(write(tmp_path, "t.csv", f"id,article,highlights\n1,{'word ' * 50_000},b\n"))
    assert story.article.count("word") == 50_000


def test_a_csv_row_is_where_it_begins(tmp_path):
    path = write(tmp_path, "t.csv", 'id,article,highlights\r\n1,"two\nlines",x\r\n\r\n2,b,y\r\n')
    first, second = TASKS["summarize"].read(path)
    assert (first.article, first.where, second.where) == ("two\nlines", f"{path}:2", f"{path}:5")


def test_dialogues_of_mt_bench(tmp_path):
    entries = [
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
        {"question_id": 101, "category": "math", "turns": ["1 + 1?", "Why?"], "reference": ["2", ""]},
    ]
    first, second = TASKS["chat"].read(write(tmp_path, "question.jsonl", lines(*entries)))
    assert (first.id, first.question_id, first.group, first.turns) == ("81", 81, "writing", ("Write.", "Again."))
    assert (first.reference, second.reference) == ((), ("2", ""))


EXAM = ["What is olm?", "a cat", "a cave", "an animal, in caves", "none"]


def mmlu(folder, test, dev=None, subject="anatomy"):
    if dev is not None:
        write(folder, f"dev/{subject}_dev.csv", dev)
    write(folder, f"test/{subject}_test.csv", test)
    return folder


@pytest.mark.parametrize("form", ["official", "named"])
def test_both_forms_of_mmlu(tmp_path, form):
    head, labels = (
        ([], "ABCD") if form == "official" else ([["question", *(f"choice{i}" for i in range(4)), "answer"]], "0123")
    )
    dev = table(*head, *([f"Shot {i}?", "a", "b", "c", "d", labels[i % 4]] for i in range(6)))
    folder = mmlu(tmp_path, table(*head, [*EXAM, labels[2]], [*EXAM, labels[2]]), dev)
    first, second = TASKS["mmlu"].read(folder)
    assert first.text == "What is olm?\nA. a cat\nB. a cave\nC. an animal, in caves\nD. none\nAnswer:"
    assert (first.gold, first.group, len(first.shots)) == (2, "anatomy", 5)
    assert first.shots[0] == "Shot 0?\nA. a\nB. b\nC. c\nD. d\nAnswer: A" and first.shots[3].endswith("Answer: D")
    assert second.id == f"{first.id}#2" and first.id.startswith("anatomy/")


def test_mmlu_has_57_subjects_in_four_groups():
    """As many of each as the authors' table has."""
    sizes = {group: list(GROUPS.values()).count(group) for group in GROUPS.values()}
    assert sizes == {"STEM": 19, "Humanities": 13, "Social Science": 12, "Others": 13}


def test_texts_are_cut_between_words(tmp_path):
    words = [f"word{i}" for i in range(1000)]
    plain = write(tmp_path, "t.txt", "\n" + " \n".join(words) + "\n")
    pieces = TASKS["perplexity"].read(plain)
    assert " ".join(piece.text for piece in pieces).split() == words
    assert all(200 <= len(piece.text) <= 2000 and piece.text == piece.text.strip() for piece in pieces)
    assert len(pieces[0].text) > 1990
    for piece in pieces:
        assert int(piece.where.rsplit(":", 1)[1]) == 2 + int(piece.text.split()[0][4:])
    listed = write(tmp_path, "t.jsonl", lines({"text": plain.read_text()}, {"text": "short"}, {"text": "x" * 4100}))
    of_lines = TASKS["perplexity"].read(listed)
    assert of_lines[: len(pieces)] == [type(piece)(piece.id, "", f"{listed}:1", piece.text) for piece in pieces]
    assert [len(piece.text) for piece in of_lines[len(pieces) :]] == [2000, 2000]
    assert of_lines[-1].id == f"{of_lines[-2].id}#2"


# ---- ids ----

CHOICE = {"query": "Question: What is olm?", "choices": ["cat", "animal"], "gold": 1}


@pytest.mark.parametrize(
    ("task", "entries"),
    [
        ("choice", [CHOICE, {**CHOICE, "query": "Who?"}, {**CHOICE, "choices": ["a", "b"]}]),
        ("cloze", [{"context": "Olm sat on a", "continuation": word} for word in ("mat", "cat", "hat")]),
        ("demo", [{"question": "Who?", "answer": word} for word in ("Olm", "Ul", "Brin")]),
        ("factoid", [{"context": "Who?", "answer": word, "aliases": []} for word in ("Olm", "Ul", "Brin")]),
        ("perplexity", [{"text": letter * 300} for letter in "abc"]),
    ],
)
def test_an_id_does_not_hang_on_what_else_there_is(tmp_path, task, entries):
    whole = TASKS[task].read(write(tmp_path, "a.jsonl", lines(*entries)))
    part = TASKS[task].read(write(tmp_path, "b.jsonl", "\n" + lines(entries[2], entries[1])))
    twice = TASKS[task].read(write(tmp_path, "c.jsonl", lines(entries[0], entries[0], entries[1])))
    assert len({item.id for item in whole}) == 3
    assert [item.id for item in part] == [whole[2].id, whole[1].id]
    assert [item.id for item in twice] == [whole[0].id, f"{whole[0].id}#2", whole[1].id]


# ---- what is wrong ----

GOOD = {
    "choice": CHOICE,
    "cloze": {"context": "Olm sat on a", "continuation": "mat"},
    "demo": {"question": "Who?", "answer": "Olm"},
    "chat": {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
    "factoid": {"context": "Question: Who?\nAnswer:", "answer": "Olm", "aliases": []},
    "summarize": ARTICLE,
    "perplexity": {"text": "word " * 100},
}


@pytest.mark.parametrize("task", GOOD)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.jsonl: the file is empty; a JSON object per line is right"),
        (b"\n \n", "x.jsonl: the file is empty"),
        ("{good}\n[1]\n", r"x.jsonl:2: \[1\] is no JSON object"),
        ('{good}\n{"a": \n', "x.jsonl:2: not JSON: Expecting value"),
        ("{good}\n\n{}\n", "x.jsonl:3: no '{key}' in it; it has nothing"),
        ('{good}\n{"other": 1}\n', "x.jsonl:2: no '{key}' in it; it has 'other'"),
        ("é".encode("latin-1"), "x.jsonl:1: not text in UTF-8"),
        ("{good}".encode("utf-16"), "x.jsonl: in UTF-16; save it in UTF-8"),
        (b"PAR1\0", "x.jsonl: a binary file"),
    ],
)
def test_broken_lines_of_json(tmp_path, task, content, message):
    good, key = json.dumps(GOOD[task]), next(iter(GOOD[task]))
    if task == "chat":
        key = "question_id"
    if task == "summarize":
        key = "article"
    content = content.replace("{good}", good) if isinstance(content, str) else content
    with pytest.raises(ValueError) as caught:
        TASKS[task].read(write(tmp_path, "x.jsonl", content))
    assert_says(caught, tmp_path, message.replace("{key}", key))


def assert_says(caught, folder, message):
    """One line that begins with the file."""
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"{folder}/"), text
    assert re.match(message, text[len(str(folder)) + 1 :]), text


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("choice", {"gold": 2}, "'gold' is 2; the index of the right choice, 0 to 1, is right"),
        ("choice", {"gold": -1}, "'gold' is -1; "),
        ("choice", {"gold": "B"}, "'gold' is 'B'; "),
        ("choice", {"gold": "animal"}, "'gold' is 'animal'; "),
        ("choice", {"gold": True}, "'gold' is True; "),
        ("choice", {"gold": 0.0}, "'gold' is 0.0; "),
        ("choice", {"choices": ["one"]}, "one choice; two at least are right"),
        ("choice", {"choices": []}, r"'choices' is \[\]; a list of texts is right"),
        ("choice", {"choices": "ab"}, "'choices' is 'ab'; a list of texts is right"),
        ("choice", {"choices": ["a", ""]}, "'choices' holds ''; a text that is not blank is right"),
        ("choice", {"query": 7}, "'query' holds 7; a text that is not blank is right"),
        ("choice", {"query": " "}, "'query' holds ' '; "),
        ("choice", {"query": "\ud83d"}, "'query' holds half a surrogate pair"),
        ("cloze", {"continuation": ""}, "'continuation' holds ''; "),
        ("demo", {"answer": None}, "'answer' holds None; "),
        ("chat", {"turns": ["Write.", 2]}, "'turns' holds 2; "),
        ("chat", {"question_id": 1.5}, "'question_id' holds 1.5; "),
        ("chat", {"reference": "2"}, "'reference' is '2'; a list of texts is right"),
        ("factoid", {"context": "Question: \nAnswer:"}, "no question in 'context'; "),
        ("factoid", {"aliases": [1]}, "'aliases' holds what is no string"),
        ("summarize", {"highlights": []}, r"'highlights' is \[\]; "),
        ("summarize", {"id": None}, "'id' holds None; "),
    ],
)
def test_wrong_entries(tmp_path, task, change, message):
    entries = [GOOD[task], {**GOOD[task], "question_id": 82, "id": 82, **change}]
    content = "".join(json.dumps(entry) + "\n" for entry in entries)
    with pytest.raises(ValueError) as caught:
        TASKS[task].read(write(tmp_path, "x.jsonl", content))
    assert_says(caught, tmp_path, f"x.jsonl:2: {message}")


@pytest.mark.parametrize("task", ["chat", "summarize"])
def test_official_ids_are_not_repeated(tmp_path, task):
    with pytest.raises(ValueError) as caught:
        TASKS[task].read(write(tmp_path, "x.jsonl", lines(GOOD[task], GOOD[task])))
    assert_says(caught, tmp_path, f"x.jsonl:2: the id '.*' is that of {tmp_path}/x.jsonl:1 too; each has its own")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "", "x.json: the file is empty; a JSON object with 'Questions' or 'Data' is right"),
        ("x.json", "[]", "x.json:1: no object with 'Questions' or 'Data'"),
        ("x.json", '{"Questions": {}}', "x.json:1: 'Questions' is {}; a list of objects"),
        ("x.json", '{"Questions":\n [{"a": }]}', "x.json:2: not JSON: Expecting value"),
        ("x.json", "[" * 100_000, "x.json: not JSON that can be read"),
        ("x.json", '{"Questions": [' + "1" * 5000 + "]}", "x.json: not JSON that can be read"),
        ("x.json", '{"Version": "1",\n"Questions": [{},\n 3]}', "x.json:3: 3 is no JSON object"),
        ("x.json", '{"Data": [\n\n{"QuestionId": "1"}]}', "x.json:3: no 'Answer' in it; it has 'QuestionId'"),
        ("x.json", freebase(("Who?", [])), r"x.json:5: 'Parses' is \[\]; a list of objects is right"),
        ("x.json", freebase(("Who?", [3])), "x.json:5: 'Parses' holds 3; an object is right"),
        ("x.json", freebase(("Who?", [parse()])), "x.json:5: no name in any of the 'AnswersName'"),
        ("x.json", freebase(("Who?", [{"Answers": [{}]}])), "x.json:5: no 'AnswersName' in it"),
        ("x.txt", "", "x.txt: the file is empty; a line `question | answer` each is right"),
        ("x.txt", "Who? | olm\nWho?\n", "x.txt:2: no question, bar and answer; `question | answer` is right"),
        ("x.txt", "Who? | \n", "x.txt:1: no question, bar and answer"),
        ("x.txt", " | olm\n", "x.txt:1: no question, bar and answer"),
        ("x.txt", "Who? | olm\n".encode("utf-16"), "x.txt: in UTF-16"),
    ],
)
def test_broken_questions(tmp_path, name, content, message):
    with pytest.raises(ValueError) as caught:
        TASKS["factoid"].read(write(tmp_path, name, content))
    assert_says(caught, tmp_path, message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "", "x.csv: the file is empty; rows of CSV are right"),
        ("x.csv", "id,article,highlights\n", "x.csv: there is no row below the names of the columns"),
        ("x.csv", "id,article\n1,b\n", "x.csv:1: no column 'highlights'; there are 'id', 'article'"),
        ("x.csv", "id,article,article,highlights\n1,a,b,c\n", "x.csv:1: column 'article' is there 2 times; "),
        ("x.csv", "id,article,highlights\n1,a,b\n1,b\n", "x.csv:3: 2 fields; 3 are right"),
        ("x.csv", 'id,article,highlights\n1,"a"b,c\n', "x.csv:2: not CSV: "),
        ("x.csv", 'id,article,highlights\n1,a,b\n2,"a,b\n', "x.csv:3: not CSV: "),
        ("x.csv", "id,article,highlights\n1,,b\n", "x.csv:2: 'article' holds ''; "),
        ("x.csv", "id,article,highlights\n1,a,b\n1,c,d\n", "x.csv:3: the id '1' is that of .*x.csv:2 too"),
        ("x.csv", "é".encode("latin-1"), "x.csv:1: not text in UTF-8"),
        ("x.parquet", b"PAR1 and no more", "x.parquet: no parquet file: "),
        ("x.parquet", b"", "x.parquet: no parquet file: "),
        ("x.txt", "story", "x.txt: its name has none of the endings .jsonl, .csv, .parquet"),
    ],
)
def test_broken_tables(tmp_path, name, content, message):
    with pytest.raises(ValueError) as caught:
        TASKS["summarize"].read(write(tmp_path, name, content))
    assert_says(caught, tmp_path, message)


def test_broken_parquet(tmp_path):
    pandas.DataFrame([{"id": "1", "article": "a"}]).to_parquet(tmp_path / "a.parquet")
    pandas.DataFrame([ARTICLE, {**ARTICLE, "id": "2", "article": None}]).to_parquet(tmp_path / "b.parquet")
    pandas.DataFrame(columns=list(ARTICLE)).to_parquet(tmp_path / "c.parquet")
    for name, message in (
        ("a", "a.parquet: no column 'highlights'; there are 'id', 'article'"),
        ("b", "b.parquet: row 2: 'article' holds (None|nan); "),
        ("c", "c.parquet: there is no row in it"),
    ):
        with pytest.raises(ValueError) as caught:
            TASKS["summarize"].read(tmp_path / f"{name}.parquet")
        assert_says(caught, tmp_path, message)


ROW = ",".join(["Olm?", "a", "b", "c", "d"])


@pytest.mark.parametrize(
    ("test", "dev", "message"),
    [
        (f"{ROW},A\n", None, "dev/anatomy_dev.csv: missing; it has the answered questions"),
        ("", f"{ROW},A\n", "test/anatomy_test.csv: the file is empty"),
        (f"{ROW},A\n", "", "dev/anatomy_dev.csv: the file is empty"),
        (f"{ROW},A\n{ROW},E\n", f"{ROW},A\n", "test/anatomy_test.csv:2: the answer is 'E'; one of A, B, C, D is right"),
        (f"{ROW},A\n{ROW},0\n", f"{ROW},A\n", "test/anatomy_test.csv:2: the answer is '0'; one of A, B, C, D is right"),
        (f"{ROW},A\n", f"{ROW},\n", "dev/anatomy_dev.csv:1: the answer is ''; one of A, B, C, D is right"),
        (f"{ROW},A\n{ROW}\n", f"{ROW},A\n", "test/anatomy_test.csv:2: 5 fields; 6 are right"),
        ("Olm?,a,,c,d,A\n", f"{ROW},A\n", "test/anatomy_test.csv:1: the question or a choice is blank"),
        (
            f"question,choice0,choice1,choice2,choice3,answer\n{ROW},4\n",
            f"{ROW},A\n",
            "test/anatomy_test.csv:2: the answer is '4'; one of 0, 1, 2, 3 is right",
        ),
        (
            "question,choice0,choice1,choice2,choice3,answer\n",
            f"{ROW},A\n",
            "test/anatomy_test.csv: there is no question in it",
        ),
    ],
)
def test_broken_mmlu(tmp_path, test, dev, message):
    (tmp_path / "dev").mkdir()
    with pytest.raises(ValueError) as caught:
        TASKS["mmlu"].read(mmlu(tmp_path, test, dev))
    assert_says(caught, tmp_path, message)


def test_folders_that_are_not_mmlu(tmp_path):
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="no folder 'dev' in it; one with 'dev' and 'test' is right"):
        TASKS["mmlu"].read(tmp_path)
    (tmp_path / "dev").mkdir()
    with pytest.raises(ValueError, match=r"test: no file SUBJECT_test\.csv in it"):
        TASKS["mmlu"].read(tmp_path)
    with pytest.raises(ValueError, match="'alchemy' is none of the 57 subjects of MMLU"):
        TASKS["mmlu"].read(mmlu(tmp_path, f"{ROW},A\n", f"{ROW},A\n", "alchemy"))


@pytest.mark.parametrize("task", [name for name in TASKS if name != "mmlu"])
def test_what_is_not_there(tmp_path, task):
    with pytest.raises(FileNotFoundError, match="missing"):
        TASKS[task].read(tmp_path / "missing.jsonl")


def test_a_text_that_is_too_short(tmp_path):
    with pytest.raises(ValueError) as caught:
        TASKS["perplexity"].read(write(tmp_path, "x.txt", "A word. " * 20))
    assert_says(caught, tmp_path, "x.txt: no text of 200 characters in it")
