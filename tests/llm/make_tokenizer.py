# SPDX-License-Identifier: MIT
"""Makes data/tokenizer: two small byte-level BPE tokenizers, GPT-2's way and SmolLM's, and what the package
`tokenizers` makes of hundreds of odd texts with them and with variants of them. Needs the GPL-3 of Debian's common
licenses."""
import copy
import json
import pathlib
import random

import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SEED = 6
HERE = pathlib.Path(__file__).parent / "data" / "tokenizer"

SENTENCES = """It's what they're saying: we've seen that he'd go, I'm sure you'll agree, don't you?
Der Fluß fließt über große Steine; Äpfel, Öl und Übung kosten 12,50 € im März 2024.
L'été dernier, à Orléans, nous avons goûté des crêpes où qu'elles fussent.
El niño comió piñas en la mañana; ¿cuántas? ¡Tres!
Быстрая лиса прыгает через ленивую собаку, а собака спит.
Η γρήγορη αλεπού πηδάει πάνω από το σκυλί.
素早い茶色の狐がのろまな犬を飛び越える。日本語の文章です。
敏捷的棕色狐狸跳过了懒狗。今天是二〇二四年。
الثعلب البني السريع يقفز فوق الكلب الكسول ١٢٣٤٥
तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है १२३
빠른 갈색 여우가 게으른 개를 뛰어넘는다.
def encode(self, text: str) -> list[int]:\n    return [self.ids[c] for c in text]\n\n\tif x == 0:\n\t\tpass
for (int i = 0; i < 100; ++i) { sum += a[i] * b[i]; }  // 3.14159 0xFF 1e-5
👍👍 😀 family: 👨‍👩‍👧‍👦, flags 🇩🇪🇫🇷, e-mail: someone@example.org; www.example.org/a?b=c&d=e#f""".split("\n")

BY_HAND = [
    # the empty text, space of all kinds, at all places
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r\n\r\n\r\n", "\t", "\t\t", " \t \n ", "a", " a", "  a", "a ",
    "a  ",
    "   a   b   ", "a\nb", "a\n b", "a \nb", "a\n\n  b", "a\r\nb\r\n", "\n a", " \na", "a\tb", "a\t\tb", "a \tb",
    "a\t b",
    "a\u00a0b", "a \u00a0b", "a\u00a0 b", "\u00a0", "\u00a0\u00a0a", "a\u180eb", "a \u180e b", "a\u0085b",
    "a\u0085\u0085b",
    "a\u0085 b", "a\u1680b", "a\u2000\u2001\u2002b", "a\u2003 b", "a\u2009b", "a\u200ab", "a\u200bb",
    "a\u200b \u200bb",
    "a\u2028b", "a\u2029b", "a\u202fb", "a\u205fb", "a\u2060b", "a\u3000b", "a\u3000\u3000b ", "\ufeffa",
    "a\ufeffb",
    "a\u001cb", "a\u001d\u001e\u001f b", "a\u000bb\u000c c", "\u0000", "a\u0000b", "\u0000\u0000 a",
    "\u0001\u007f\u0080",
    # contractions of both cases, at the end, in a row
    "it's", "It'S", "IT'S", "don't", "DON'T", "they're we've I'm you'll he'd", "they'RE", "'s", "'t", "''s",
    "'s's's",
    " 's", "a 's b", "'", "''", "'''", "' s", "'l", "'ll", "'lll", "'r", "'re", "'rest", "'v", "'vest", "it’s",
    "O'Reilly's",
    "rock'n'roll", "'\u017f", "5's", "'1", "!'s", "a'\n's",
    # digits and other numbers
    "0", "12", "123", " 123", "a1b2", "1a", "3.14159", "-1e-5", "1,000,000", "2024-05-17 12:34:56", "a  1",
    "a  12 3", " 1", "  1",
    "1 ", "1  ", "1  a", "1\n2", "x²", "x² + y³ = z⁴", "10⁻⁵", "½ cup", "1½", "Ⅳ", "ⅣⅤ ⅿ", "① ② ⑳", "٣", "١٢٣",
    " ٣٤ ٥", "१२३ ४",
    "๑๒๓", "〇", "一二三", "二〇二四", "𝟘𝟙𝟚", "𒐀𒐁", "𐄇𐄈", "㊀㊁", "㉑", "৴", "௧௰", "0\u0301", "1\u20e3",
    # letters with marks, in one and in more characters
    "é", "e\u0301", "e\u0301e\u0301", "a\u0308o\u0308u\u0308", "\u0301", " \u0301", "n\u0303o",
    "Z\u0351\u0357\u0363a\u0300\u0316l",
    "ﬁ ﬂ", "ſ", "ß ẞ", "İi", "Åström", "A\u030astro\u0308m", "naïve café", "Ǆǅǆ", "ªº", "ʰˠ", "Ω Ω", "किताब",
    "कि ता ब", "தமிழ்", "ภาษาไทย",
    "ไม่มี", "မြန်မာ", "עברית", "עִבְרִית", "العربية", "اَلْعَرَبِيَّةُ", "日本語", "日本 語", "中文，标点。", "한국어", "한국어",
    "ｆｕｌｌ１２３", "𝕳𝖊𝖑𝖑𝖔", "𐐀𐐨", "𠀀𠀁", "ᚠᛇᚻ", "ꙮ", "\u0e33",
    # symbols, emoji, private, unassigned and the last code points
    "!", "!!!", " !", "! !", "a!b", "(a)", "a.b.c", "...", "…", "—", "“quoted”", "«a»", "€5", "$5.00", "5%", "a_b",
    "a__b", "#tag @user",
    "<a href=\"b\">c</a>", "{\"a\": [1, 2]}", "\\n", "C:\\d", "~", "a^b", "`x`", "😀", "😀😀", " 😀", "a😀b", "👍🏽",
    "👨‍👩‍👧‍👦", "👩🏾‍🚀 ok",
    "🇩🇪🇫🇷", "❤️", "☺︎", "1️⃣2️⃣", "♞", "∀x∈ℝ", "ℵ₀", "→ ⇒", "a→b", "⠓⠑", "\ue000", "a\uf8ffb", "\ufffd", "\ufffe",
    "\uffff", "\ufdd0",
    "\u0378", "a\u0378b", "\U000e0001", "\U0010ffff", "\U0003fffd a", "\U000f0000", "\ud7ff\ue000", "\u200d",
    "a\u200db", "\u200c\u200d",
    # special tokens alone, in the middle, in parts, side by side
    "<|endoftext|>", "a<|endoftext|>b", "a <|endoftext|> b", "<|endoftext|><|endoftext|>", "<|endoftext|",
    "<|endoftext", "|>",
    "<<|endoftext|>>", "<|endo<|endoftext|>text|>",
    "<|im_start|>user\nHi there!<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>",
    "<|im_end|>", "<|im_start|><|im_end|>", "<|IM_END|>", "< |im_end|>", "it's<|endoftext|>'s", "1<|im_end|>2",
    "  <|im_end|>  ",
    "\n<|im_end|>\n", "a\u0301<|im_end|>\u0301",
    # long words
    "a" * 300, "ab" * 150, " " * 100, "\n" * 77 + "x", "!" * 120, "9" * 40, "é" * 60, "the" * 70,
    "abcdefghijklmnopqrstuvwxyz" * 8,
    "日" * 40, "😀" * 20,
]

ADDED = [  # (text, special, normalized, lstrip, rstrip)
    ("<mask>", True, False, True, False), ("<sep>", True, False, False, True), ("<both>", True, False, True, True),
    ("<tool>", False, True, False, False), ("<tool> ", False, True, False, False), ("<tool>x", False, False, False,
     False),
    ("<|im_start|>assistant", True, False, False, False), ("ab", False, True, False, False), ("bc", False, False,
     False, False),
    ("é", False, True, False, False), ("→", False, False, True, True), ("the", False, True, False, False),
    ("  ", False, False, False, False), ("9", False, True, False, False),
]
ADDED_TEXTS = [
    "a <mask> b", "a  \n <mask>  b", "<mask>", " <mask><mask> ", "a <sep> b", "a<sep>  \t b", "<sep> <mask>",
    "<mask> <sep> <mask>",
    "a <both> <both>\u00a0<both> b", "<tool>", "<tool>x", "<tool> x", "<tool>  x", "a<tool>b", "abc", "ab c",
    "aabcc", "bcab", "abbc", "é",
    "café <tool>", "a→b", "a \u3000→ b", "→→ →", "the", "other", "the<mask> the", "the the", "a  b", "a   b",
    "a    b", "1  2", "99",
    "9 <sep>  9", "<|im_start|>assistant", "<|im_start|>assistan", "<|im_start|>ab", "<sep>  the", "<both>  ab",
    "<both>   <tool> ",
    "x<|endoftext|><tool>ab", "<tool<tool>>", "<mask\u200d>", "é→é", "e\u0301", "<sep>\r\n\r\n<both>\u0085\u2028x",
    "",
]


def odd_texts(random_source, count):
    """Texts of characters that classes are easily wrong about."""
    pool = list("aZ b19'sl  \t\n\r.,!<|>_-") + [" ", " ", "'s", "'ll", "\r\n", "é", "e\u0301", "ß", "Ж", "я", "λ",
            "日", "語", "한", "ا", "١", "क",
            "ि", "१", "²", "½", "Ⅷ", "①", "〇", "\u00a0", "\u0085", "\u180e", "\u2003", "\u2028", "\u202f", "\u3000",
            "\u200b", "\u200d", "\ufeff",
            "\u0301", "\u20e3", "😀", "👨‍👩‍👧", "🇩🇪", "𝟙", "𝕏", "\U00020000", "€", "“", "…", "\u0000", "\u001f",
            "\u007f", "\ue000", "\u0378", "ª", "ʰ",
            "the ", " of", " software"]
    return ["".join(random_source.choice(pool) for _ in range(random_source.randint(2, 9))) for _ in range(count)]


def train(pre_tokenizer, size, special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    text = pathlib.Path("/usr/share/common-licenses/GPL-3").read_text()
    tokenizer.train_from_iterator([text] + SENTENCES * 4, trainer)
    return tokenizer


def patched(document, variant):
    """The document of a variant: JSON patch operations, fewer merges."""
    document = copy.deepcopy(document)
    for step in variant.get("patch", []):
        *parents, last = step["path"].split("/")[1:]
        place = document
        for part in parents:
            place = place[int(part) if isinstance(place, list) else part]
        if step["op"] == "move":
            source = document
            *parents, first = step["from"].split("/")[1:]
            for part in parents:
                source = source[part]
            place[last] = source.pop(first)
        else:
            place[last] = step["value"]
    if "keep_merges" in variant:
        del document["model"]["merges"][variant["keep_merges"]:]
    return document


def vectors(document, texts):
    """Tokens with special tokens found; without, where that differs; the decoded text, where that differs, and null
    where it is none: bytes are missing, or were taken for those that the characters of an added token stand for."""
    tokenizer = Tokenizer.from_str(json.dumps(document))
    found = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    tokenizer.encode_special_tokens = True
    plain = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    decoded = [tokenizer.decode(ids, skip_special_tokens=False) for ids in found]
    return {"tokens": found,
            "as_text": {str(i): ids for i, ids in enumerate(plain) if ids != found[i]},
            "decoded": {str(i): text if "\ufffd" not in text else None
                        for i, text in enumerate(decoded) if text != texts[i]}}


def main():
    random_source = random.Random(SEED)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    gpt2 = train(byte_level, 700, [])
    gpt2.add_special_tokens(["<|endoftext|>"])
    smollm = train(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]), 800,
                   ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    documents = {"gpt2": json.loads(gpt2.to_str()), "smollm": json.loads(smollm.to_str())}
    bases = copy.deepcopy(documents)
    bases["gpt2"]["model"]["merges"] = [" ".join(pair) for pair in documents["gpt2"]["model"]["merges"]]
    del bases["gpt2"]["model"]["ignore_merges"]  # as in old files
    for name, document in bases.items():
        (HERE / f"{name}.json").write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n")

    with_added = copy.deepcopy(smollm)
    for text, special, normalized, lstrip, rstrip in ADDED:
        token = AddedToken(text, single_word=False, lstrip=lstrip, rstrip=rstrip, normalized=normalized,
                           special=special)
        (with_added.add_special_tokens if special else with_added.add_tokens)([token])
    added = json.loads(with_added.to_str())["added_tokens"]

    def replace(path, value):
        return {"op": "replace", "path": path, "value": value}
    lost = [{"op": "move", "from": f"/model/vocab/{c}", "path": f"/model/vocab/lost {c}"}
            for c in "^Ĉ¢"]  # ^, BS, 0xA2
    variants = [
        {"name": "a space in front, GPT-2", "base": "gpt2",
         "patch": [replace("/pre_tokenizer/add_prefix_space", True)]},
        {"name": "a space in front, SmolLM", "base": "smollm",
         "patch": [replace("/pre_tokenizer/pretokenizers/1/add_prefix_space", True)]},
        {"name": "no expression", "base": "gpt2", "patch": [replace("/pre_tokenizer/use_regex", False)]},
        {"name": "digits and no expression", "base": "smollm",
         "patch": [replace("/pre_tokenizer/pretokenizers/1/use_regex", False)]},
        {"name": "whole words first", "base": "smollm", "patch": [replace("/model/ignore_merges", True)],
         "keep_merges": 150},
        {"name": "bytes without a token", "base": "gpt2", "patch": lost},
        {"name": "a sequence of one", "base": "gpt2",
         "patch": [replace("/pre_tokenizer", {"type": "Sequence",
                                              "pretokenizers": [bases["gpt2"]["pre_tokenizer"]]})]},
        {"name": "added tokens", "base": "smollm", "patch": [replace("/added_tokens", added)]},
    ]
    texts = BY_HAND + odd_texts(random_source, 260)
    few = [i for i, text in enumerate(texts) if 0 < len(text) <= 40]
    for number, variant in enumerate(variants):
        if variant["name"] == "added tokens":
            variant["texts"] = ADDED_TEXTS
        else:
            without = ["th^e", "a\u0008b", "¢", "^", "^ ^", "so^f^tware"]
            extra = without if variant["patch"] is lost else ["software", " the GNU", "a 1  23"]
            variant["texts"] = extra + [texts[i] for i in few[number::9]]
        variant.update(vectors(patched(bases[variant["base"]], variant), variant["texts"]))
    result = {"seed": SEED, "tokenizers": tokenizers.__version__, "texts": texts,
              **{name: vectors(document, texts) for name, document in bases.items()}, "variants": variants}
    (HERE / "vectors.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")


main()
