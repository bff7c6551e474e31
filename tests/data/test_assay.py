"""Assay files as strangers bring them: each is read as what it is, or refused in a sentence that names it."""

import bz2
import gzip
import io
import lzma
import math
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difftilt.data.assay import Assay, read_assay
from difftilt.data.read import UnreadableError

Rows = list[tuple[str, float]]
LETTERS = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWY"}


def invented(kind: str, rng: random.Random, count: int = 12) -> Rows:
    """Distinct sequences, of several lengths, that no other kind's letters can spell."""
    words = {"".join(rng.choices(LETTERS[kind], k=rng.randint(6, 9))) + LETTERS[kind] for _ in range(count)}
    return [(word, round(rng.uniform(-3, 9), 4)) for word in sorted(words)]


def separated(
    mark: str = ",",
    header: tuple[str, ...] = ("sequence", "score"),
    number: Callable[[float], str] = "{:.4f}".format,
    before: str = "",
    end: str = "\n",
    spell: Callable[[str], str] = str,
    more: tuple[str, ...] = (),
) -> Callable[[Rows], str]:
    def written(rows: Rows) -> str:
        lines = [mark.join(header)] if header else []
        lines += [mark.join((spell(word), number(score), *more)) for word, score in rows]
        return before + end.join(lines) + end

    return written


def fasta(header: str, width: int = 100) -> Callable[[Rows], str]:
    def written(rows: Rows) -> str:
        records = []
        for number, (word, score) in enumerate(rows):
            lines = [word[i : i + width] for i in range(0, len(word), width)]
            records.append("\n".join([">" + header.format(n=number, score=score), *lines]))
        return "\n".join(records) + "\n\n"

    return written


def zipped(text: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("__MACOSX/._assay.csv", "of a Mac")
        archive.writestr("folder/assay.csv", text)
    return packed.getvalue()


def comma(score: float) -> str:
    return f"{score:.4f}".replace(".", ",")


FORMS: dict[str, Callable[[Rows], str]] = {
    "plain": separated(),
    "tabs": separated("\t"),
    "semicolons": separated(";"),
    "bars": separated("|"),
    "blanks": separated(" "),
    "decimal commas": separated(";", number=comma),
    "quoted decimal commas": separated(number=lambda score: f'"{comma(score)}"'),
    "quoted": separated(spell='"{}"'.format),
    "other names": separated(header=("Mutated Sequence", "DMS_score")),
    "names of its own": separated(header=("construct", "what came out")),
    "no header": separated(header=()),
    "more columns": separated(header=("seq", "log2FC", "batch"), more=("b1",)),
    "excel's line": separated(";", before="sep=;\n"),
    "comments": separated(before="# of the MaveDB\n# two\n"),
    "windows": separated(end="\r\n"),
    "old mac": separated(end="\r"),
    "blank lines": separated(before="\n\n", end="\n\n"),
    "lower case": separated(spell=str.lower),
    "blanks inside": separated(spell=lambda word: f" {word[:5]} {word[5:]} "),
    "empty columns": separated(header=("sequence", "score", ""), more=("",)),
    "scientific": separated(number="{:.9e}".format),
    "fasta": fasta("v{n} fitness={score}"),
    "fasta in lines": fasta("v{n}|batch1|fitness={score}", width=7),
}
PACKS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zip": zipped,
    "bom": lambda text: b"\xef\xbb\xbf" + text,
    "utf16": lambda text: text.decode().encode("utf-16"),
    "utf16be": lambda text: b"\xfe\xff" + text.decode().encode("utf-16-be"),
}
CASES = [(form, None, kind) for form in FORMS for kind in ("dna", "protein")]
CASES += [(form, pack, "rna") for form in ("plain", "fasta", "decimal commas") for pack in PACKS]


def write(folder: Path, content: str | bytes, name: str = "assay.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_pairs(assay: Assay) -> Rows:
    return list(zip(assay.sequences, [round(score, 4) for score in assay.score.tolist()], strict=True))


@pytest.mark.parametrize(("form", "pack", "kind"), CASES)
def test_every_form_of_a_table_is_read_alike(form: str, pack: str | None, kind: str, tmp_path: Path):
    rows = invented(kind, random.Random(f"{form} {pack} {kind}"))
    text = FORMS[form](rows).encode()
    assay = read_assay(write(tmp_path, PACKS[pack](text) if pack else text))
    assert as_pairs(assay) == rows
    assert "".join(assay.letters) == LETTERS[kind]
    assert assay.understood[1].endswith(kind if kind == "protein" else kind.upper())


BAD = [
    "sequence,score",
    "ACGT,1",
    "ACGN,1",
    ",2",
    "",
    "ACCT,n.d.",
    "ACCA,inf",
    "AUGT,1",
    '"AC',
    'GG",3',
    "ACXX,4",
    "ACGT,3,5",
    "TTTT",
    "CCCC,NA",
    "acgt,5",
]


def test_all_bad_rows_are_told_at_once_and_dropped_if_asked(tmp_path: Path):
    path = write(tmp_path, "\n".join(BAD))
    with pytest.raises(UnreadableError) as error:
        read_assay(path)
    assert str(error.value) == (
        f"{path}: 8 of 12 rows cannot be used: 2 with other letters than ACGT, first line 3 (ACGN);"
        " 1 without a sequence, first line 4; 2 with a score that is no finite number, first line 6 (n.d.);"
        " 1 with both T and U, first line 8 (AUGT); 2 with another number of cells than the header, 2, first"
        " line 12 (3). Correct them, or leave them out with --bad-rows drop"
    )
    assay = read_assay(path, bad_rows="drop")
    assert assay.sequences == ["ACGT", "ACGG", "CCCC"]
    assert assay.score.tolist()[:2] == [3, 3] and math.isnan(assay.score[2])
    assert assay.count.tolist() == [2, 1, 0]
    assert assay.error[0] == pytest.approx(2)  # of 1 and 5: their deviation, sqrt 8, over sqrt 2
    assert assay.error.isnan().tolist() == [False, True, True]
    assert "8 of 12 rows" in assay.understood[3]


def test_columns_and_tokens_can_be_named(tmp_path: Path):
    tokens = write(tmp_path, "AUG GCU\nUAA [m6A]", "codons.txt")
    path = write(tmp_path, "id,first,second,up,down\n1,AUG GCU,UAA,1,2\n2,GCU[m6A]AUGUAA,UAA,3,4\n")
    assay = read_assay(path, "First", "down", str(tokens))
    assert as_pairs(assay) == [("AUGGCU", 2), ("GCU[m6A]AUGUAA", 4)]
    vocabulary = assay.vocabulary()
    assert (vocabulary.shortest, vocabulary.longest) == (2, 4)
    tokens = vocabulary.encode(assay.sequences)
    assert tokens.tolist() == [[0, 1, 4, 4], [1, 3, 0, 2]]
    assert vocabulary.spell(tokens) == assay.sequences


REFUSED = {
    "smiles": (
        "SMILES,SPLIT\nCCO,train\nc1ccccc1,train\n",
        "no column holds sequences of DNA, RNA or protein",
    ),
    "two columns": ("a,b\nACGT,CCGT\nACGA,CCGA\n", "more than one column holds sequences"),
    "two scores": ("seq,a,b\nACGT,1,2.5\nACGA,3,9\n", "several columns hold numbers (a, b)"),
    "thousands": ("seq;score\nACGT;1,234\nACGA;3,456\n", "1,234 may have a decimal comma, or thousands"),
    "no rows": ("sequence,score\n", "there are no rows below the header"),
    "nothing": ("\n \n", "is empty"),
    "all bad": ("sequence,score\nACGT,x\nACGA,y\n", "2 of 2 rows cannot be used"),
    "no letters": ("sequence,score\nA-1,1\nB-2,2\n", "are not of DNA, RNA or protein"),
    "odd letters": ("sequence,score\nACGT,1\nAC?T,2\n", "such as 'AC?T' are not of DNA, RNA or protein"),
    "workbook": (b"", "is a workbook of Excel: save its sheet as CSV"),
    "picture": (b"\x89PNG\r\n\x1a\n\x00\x00", "holds no text"),
    "damaged": (gzip.compress(b"sequence,score\n" * 99)[:40], "the file is damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(case: str, tmp_path: Path):
    content, said = REFUSED[case]
    if case == "workbook":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("[Content_Types].xml", "<xml/>")
        content = packed.getvalue()
    path = write(tmp_path, content)
    with pytest.raises(UnreadableError) as error:
        read_assay(path)
    assert str(error.value).startswith(str(path)) and said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"sequence": "nowhere"}, "no column is called nowhere: the columns are sequence, score"),
        ({"score": "nowhere"}, "no column is called nowhere"),
        ({"alphabet": "klingon"}, "the alphabets are dna, rna, protein, or a file of tokens"),
        ({"alphabet": "protein", "sequence": "score"}, "with other letters"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(named, said, tmp_path: Path):
    path = write(tmp_path, "sequence,score\nACGT,1\nACGA,2\n")
    with pytest.raises(UnreadableError, match=said):
        read_assay(path, **named)


@settings(max_examples=50)
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_file_is_read_or_refused(tmp_path_factory, content: bytes):
    path = write(tmp_path_factory.getbasetemp(), content, "any.csv")
    try:
        assert read_assay(path).sequences
    except UnreadableError as error:
        assert str(error).startswith(str(path))
