// A language model: it reads what is typed, and writes on.
const model = programs.step(weights);
const symbols = about.symbols, unknown = about.unknown;
const text = one("text"), list = one("next"), go = one("write"), heat = one("temperature");
const MOST = 20000, SHOWN = 8;

// --- text to symbols and back ------------------------------------------------------------------------------------------

const utf8 = new TextEncoder();
const numbers = new Map(about.pieces.map((piece, k) => [piece, k]));
const known = (piece) => numbers.get(piece) ?? unknown;
// GPT-2's pattern; then pairs are merged, the earliest learnt first.
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;
const ranks = new Map((about.merges || []).map((pair, k) => [pair, k]));
const merged = (word) => {
  let parts = Array.from(utf8.encode(word), (byte) => about.letters[byte]);
  for (;;) {
    let best = -1, rank = Infinity;
    for (let k = 0; k + 1 < parts.length; k++) {
      const found = ranks.get(`${parts[k]} ${parts[k + 1]}`);
      if (found < rank) [best, rank] = [k, found];
    }
    if (best < 0) return parts.map((part) => numbers.get(part));
    const [a, b] = [parts[best], parts[best + 1]], next = [];
    for (let k = 0; k < parts.length; k++)
      if (parts[k] === a && parts[k + 1] === b) next.push(a + b), k++;
      else next.push(parts[k]);
    parts = next;
  }
};
const letter = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\u200c\\u200d";
const kinds = {
  characters: (said) => Array.from(said, known),
  bytes: (said) => Array.from(utf8.encode(said)),
  words: (said) => Array.from(said.match(new RegExp(`[${letter}]+|[^${letter}\\s]+|\\n`, "gu")) || [], known),
  bpe: (said) => (said.match(WORDS) || []).flatMap(merged),
};
const encode = kinds[about.kind];

// What a symbol adds to the text so far; bytes of a character that is not whole are held back.
let decoder = new TextDecoder();
const CLEANED = [[" .", "."], [" ?", "?"], [" !", "!"], [" ,", ","], [" ' ", "'"], [" n't", "n't"], [" 'm", "'m"], [" 's", "'s"], [" 've", "'ve"], [" 're", "'re"]];
const told = (symbol, before) => {
  if (about.bytes) return decoder.decode(Uint8Array.from(about.bytes[symbol]), {stream: true});
  const piece = about.pieces[symbol];
  if (about.kind !== "words" || !before) return piece;
  if (piece.startsWith("##")) return piece.slice(2);
  if (piece === "\n" || before.endsWith("\n")) return piece;
  return CLEANED.reduce((said, [from, to]) => said.replaceAll(from, to), ` ${piece}`);
};

// --- reading -----------------------------------------------------------------------------------------------------------

let tokens = [], at = 0; // what is to be read, and how many of them are
const bits = [0]; // of the first k symbols: how surprising they were
const every = Math.max(1, Math.ceil((4 * (model.state.length + model.whole.length)) / 4096)), saved = [];
const read = () => {
  if (at % every === 0) saved[at / every] = [model.state.slice(), model.whole.slice()];
  const symbol = tokens[at];
  let surprise = 0;
  if (at) {
    let top = -Infinity, total = 0;
    for (const score of model.out) if (score > top) top = score;
    for (const score of model.out) total += Math.exp(score - top);
    surprise = (Math.log(total) - (model.out[symbol] - top)) / Math.LN2;
  }
  model.ids[0] = symbol;
  model.step();
  at += 1;
  bits[at] = bits[at - 1] + surprise;
};
const back = (to) => {
  let place = Math.floor(Math.max(to - 1, 0) / every);
  while (place > 0 && !saved[place]) place -= 1;
  at = place * every;
  if (at === 0) model.init();
  else {
    model.state.set(saved[place][0]);
    model.whole.set(saved[place][1]);
  }
  const sum = bits.slice(0, to + 1); // the first of those read again follows what is not there any more
  while (at < to) read();
  sum.forEach((value, k) => (bits[k] = value));
};
let reading = 0, changed = 0;
const note = () => {
  // What follows nothing follows the end of a line.
  const found = encode(text.value), wanted = (found.length ? found : encode("\n")).slice(0, MOST);
  let same = 0;
  while (same < wanted.length && same < at && wanted[same] === tokens[same]) same += 1;
  tokens = wanted;
  if (same < at) back(Math.min(same, at));
  decoder = new TextDecoder();
  changed += 1;
  cancelAnimationFrame(reading);
  on();
};
const on = () => {
  const end = performance.now() + 12;
  while (at < tokens.length && performance.now() < end) read();
  show();
  if (at < tokens.length) reading = requestAnimationFrame(on);
};

// --- writing -----------------------------------------------------------------------------------------------------------

const chosen = (temperature) => {
  let best = -1;
  for (let k = 0; k < model.out.length; k++)
    if (k !== unknown && (best < 0 || model.out[k] > model.out[best])) best = k;
  if (!(temperature > 0)) return best;
  const shares = softmax(model.out, temperature);
  let left = Math.random() * (1 - (unknown === null ? 0 : shares[unknown]));
  for (let k = 0; k < shares.length; k++) {
    if (k === unknown) continue;
    left -= shares[k];
    if (left < 0) return k;
  }
  return best;
};
// Symbols that the model writes, one after another; the text that they add.
const written = (count, temperature, symbol = null) => {
  let more = "", before = text.value;
  while (at < tokens.length) read();
  for (let n = 0; n < count && tokens.length < MOST; n++) {
    const next = symbol ?? chosen(temperature), piece = told(next, before);
    tokens.push(next);
    read();
    more += piece;
    before = piece || before;
  }
  return more;
};
const write = (count, temperature = Number(heat.value), symbol = null) => {
  const more = written(count, temperature, symbol);
  text.value += more;
  text.scrollTop = text.scrollHeight;
  show();
  return more;
};

let writing = 0, pace = 0;
const stop = () => {
  cancelAnimationFrame(writing);
  writing = 0;
  go.textContent = "Write on";
  go.setAttribute("aria-pressed", "false");
};
const turn = () => {
  if (tokens.length >= MOST) return stop();
  const begun = performance.now();
  let count = 0;
  do {
    text.value += written(1, Number(heat.value));
    count += 1;
  } while (one("fast").checked && performance.now() - begun < 12 && tokens.length < MOST);
  pace = count / ((performance.now() - begun) / 1000);
  text.scrollTop = text.scrollHeight;
  show();
  writing = requestAnimationFrame(turn);
};
go.addEventListener("click", () => {
  if (writing) return stop();
  go.textContent = "Stop";
  go.setAttribute("aria-pressed", "true");
  writing = requestAnimationFrame(turn);
});
one("clear").addEventListener("click", () => {
  stop();
  text.value = "";
  note();
  text.focus();
});
text.addEventListener("input", () => {
  stop();
  note();
});
heat.addEventListener("input", () => {
  one("heat").textContent = Number(heat.value).toFixed(2);
  show();
});

// --- showing -----------------------------------------------------------------------------------------------------------

const paint = strips(about.states.map(({name, from, to}) => ({name, values: model.state.subarray(from, to)})));
let likely = [];
const likeliest = (shares) => {
  const found = [];
  for (let k = 0; k < shares.length; k++) {
    if (found.length === SHOWN && !(shares[k] > shares[found[SHOWN - 1]])) continue;
    let place = found.length;
    while (place > 0 && shares[k] > shares[found[place - 1]]) place -= 1;
    found.splice(place, 0, k);
    found.length = Math.min(found.length, SHOWN);
  }
  return found;
};
const show = () => {
  const shares = softmax(model.out);
  likely = likeliest(shares);
  bars(list, likely.map((k) => ({name: visible(symbols[k]), share: shares[k]})), (k) => {
    stop();
    write(1, 0, likely[k]);
  });
  const each = at > 1 ? `, ${(bits[at] / (at - 1)).toFixed(2)} bits each` : "";
  const fast = writing && one("fast").checked ? `, ${number.format(Math.round(pace))} a second` : "";
  const full = tokens.length >= MOST ? " It reads no more than that." : "";
  one("said").textContent = `${number.format(text.value ? at : 0)} symbols read${text.value ? each : ""}${fast}.${full}`;
  paint();
};
note();
window.elman = {write, note, encode, model};
