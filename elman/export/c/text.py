"""What a language model in C does when it is a program: read a prompt, write on."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from elman.data import Tokenizer
from elman.export.step.flat import Flat
from elman.models import LanguageModel


def pieces_of(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes that each symbol stands for."""
    if tokenizer.unknown is None:
        return tokenizer.raw
    return [symbol.encode() for symbol in tokenizer.symbols]


def main_for(module: nn.Module, flat: Flat, prefix: str) -> str:
    """The program of a language model that knows its tokenizer; of all others nothing."""
    if not isinstance(module, LanguageModel) or module.tokenizer is None:
        return ""
    tokenizer = module.tokenizer
    unknown = -1 if tokenizer.unknown is None else tokenizer.unknown
    words = tokenizer.kind == "words"
    pieces = pieces_of(tokenizer)
    spaced = "        if (*pieces[symbol] != '\\n') putchar(' ');\n" if words else ""
    P = prefix.upper()
    return f"""
#ifdef {P}_MAIN
/* {prefix} [PROMPT [LENGTH [TEMPERATURE [SEED]]]]: the prompt and what follows it. Temperature 0, the default, takes
 * the likeliest symbol every time. {_NOTES[tokenizer.kind]} */
#include <stdio.h>
#include <stdlib.h>

static const char *const pieces[] = {{
{_table(map(_string, pieces))}
}};
static const unsigned short sizes[] = {{
{_table(str(len(one)) for one in pieces)}
}};
enum {{ UNKNOWN = {unknown} }};

{_WORDS if words else _LONGEST}
/* A number in [0, 1): xorshift64*. */
static double drawn(uint64_t *seed) {{
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    return (double)((*seed * UINT64_C(2685821657736338717)) >> 11) / 9007199254740992.0;
}}

static int32_t chosen(const real *o, double temperature, uint64_t *seed) {{
    double total = 0, left;
    int32_t best = UNKNOWN == 0 && {P}_OUT > 1;
    for (int32_t i = 0; i < {P}_OUT; i++)
        if (i != UNKNOWN && o[i] > o[best]) best = i;
    if (!(temperature > 0)) return best;
    for (int32_t i = 0; i < {P}_OUT; i++)
        if (i != UNKNOWN) total += exp((double)(o[i] - o[best]) / temperature);
    left = drawn(seed) * total;
    for (int32_t i = 0; i < {P}_OUT; i++) {{
        if (i == UNKNOWN) continue;
        left -= exp((double)(o[i] - o[best]) / temperature);
        if (left < 0) return i;
    }}
    return best;
}}

int main(int count, char **given) {{
    static {P}_FLOAT state[{P}_STATE + {P}_SCRATCH + 1], out[{P}_OUT];
    const char *prompt = count > 1 && *given[1] ? given[1] : "\\n";
    long length = count > 2 ? strtol(given[2], NULL, 10) : 400;
    double temperature = count > 3 ? strtod(given[3], NULL) : 0;
    uint64_t seed = (count > 4 ? strtoul(given[4], NULL, 10) : 1) * UINT64_C(0x9E3779B97F4A7C15) + 1;
    int32_t symbol;
    {prefix}_init(state);
    fputs(prompt, stdout);
    while (*prompt) {{
        symbol = taken(&prompt);
        if (symbol >= 0) {prefix}_step(&symbol, state, out);
    }}
    for (long n = 0; n < length; n++) {{
        symbol = chosen(out, temperature, &seed);
{spaced}        fwrite(pieces[symbol], 1, sizes[symbol], stdout);
        {prefix}_step(&symbol, state, out);
    }}
    putchar('\\n');
    return ferror(stdout) != 0;
}}
#endif
"""


_NOTES = {
    "characters": "A character that no text of training held is the symbol of all such.",
    "bytes": "A symbol is a byte.",
    "bpe": "The prompt is cut into the longest\n * pieces from its beginning; the tokenizer may do otherwise.",
    "words": "Words are written a space apart, punctuation\n * too; what is not ASCII counts as a letter.",
}
_LONGEST = """/* The longest symbol that begins a text, which is moved on; or the one for characters that are none. */
static int32_t taken(const char **text) {
    int32_t best = -1;
    for (int32_t i = 0; i < (int32_t)(sizeof sizes / sizeof *sizes); i++)
        if (i != UNKNOWN && sizes[i] && (best < 0 || sizes[i] > sizes[best]) && !strncmp(pieces[i], *text, sizes[i]))
            best = i;
    if (best >= 0) {
        *text += sizes[best];
        return best;
    }
    do ++*text;
    while (((unsigned char)**text & 0xc0) == 0x80);
    return UNKNOWN < 0 ? 0 : UNKNOWN;
}
"""
_WORDS = """static int kind_of(char one) {
    unsigned char letter = (unsigned char)one;
    if (letter == '\\n') return 3;
    if (!letter || strchr(" \\t\\r\\f\\v", letter)) return 0;
    if (letter >= 0x80 || letter == '_' || (letter >= '0' && letter <= '9')) return 1;
    return (letter | 32) >= 'a' && (letter | 32) <= 'z' ? 1 : 2;
}

/* The word or the run of punctuation that begins a text, which is moved on; -1 where there is none. */
static int32_t taken(const char **text) {
    const char *from;
    int kind;
    while (**text && !kind_of(**text)) ++*text;
    if (!**text) return -1;
    from = *text;
    kind = kind_of(*from);
    do ++*text;
    while (kind != 3 && **text && kind_of(**text) == kind);
    for (int32_t i = 0; i < (int32_t)(sizeof sizes / sizeof *sizes); i++)
        if (sizes[i] == *text - from && !memcmp(pieces[i], from, sizes[i])) return i;
    return UNKNOWN;
}
"""


def _string(piece: bytes) -> str:
    """Letters and digits as they are, all else by number: no quotes, no trigraphs, no line ends."""
    return (
        '"' + "".join(chr(b) if chr(b).isascii() and chr(b).isalnum() else f"\\{b:03o}" for b in piece) + '"'
    )


def _table(items: Iterable[str]) -> str:
    lines, line = [], ""
    for item in items:
        if len(line) + len(item) > 100:
            lines.append(f"    {line.rstrip()}")
            line = ""
        line += f"{item}, "
    return "\n".join([*lines, f"    {line.rstrip()}"])
