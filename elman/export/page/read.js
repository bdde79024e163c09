// A tagger or a classifier: layers over a whole sequence, in one direction or both.
const text = one("text");
const layers = made_of(about.layers);
const held = new Float32Array(about.width);
const paint = strips([{name: "the highest layer at the last step", values: held}]);

// --- a label for a sequence ----------------------------------------------------------------------------------------------

const pools = {
  last: (rows, end) => end,
  max: (rows) => rows[0].map((_, k) => rows.reduce((most, y) => (y[k] > most || y[k] !== y[k] ? y[k] : most), -Infinity)),
  mean: (rows) => rows[0].map((_, k) => rows.reduce((sum, y) => sum + y[k], 0) / rows.length),
  attention: (rows) => {
    const shares = softmax(rows.map((y) => linear("attention", y)[0]));
    return rows[0].map((_, k) => rows.reduce((sum, y, t) => sum + shares[t] * y[k], 0));
  },
};
const symbols = new Map(Array.from(about.characters || "", (one, k) => [one, k + about.first]));
const sequence = (said) => {
  if (about.symbols) return [about.begin, ...Array.from(said, (c) => symbols.get(c) ?? 0), about.end].map((k) => row(table("embedding.weight"), k));
  const {mean, deviation} = about;
  const lines = said.split("\n").map((line) => line.split(/[\s,;]+/).filter(Boolean).map(Number)).filter((line) => line.length);
  const wrong = lines.findIndex((line) => line.length !== mean.length || !line.every(Number.isFinite));
  if (wrong >= 0) throw new RangeError(`step ${wrong + 1} is not ${mean.length} numbers`);
  return lines.map((line) => Float32Array.from(line, (value, k) => (value - mean[k]) / deviation[k]));
};
const classified = (said) => {
  const rows = sequence(said);
  if (!rows.length) return null;
  const [y, end] = through(layers, rows);
  held.set(y[y.length - 1]);
  return softmax(linear("readout", joined(about.pools.map((how) => pools[how](y, end)))), about.temperature);
};
const classify = () => {
  let found = null, wrong = "";
  try {
    found = classified(text.value);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    wrong = error.message;
  }
  const order = found ? Array.from(found.keys()).sort((a, b) => found[b] - found[a]).slice(0, 20) : [];
  bars(one("labels"), order.map((k) => ({name: about.labels[k], share: found[k]})));
  one("said").textContent = wrong || (found ? `${about.labels[order[0]]}, ${(100 * found[order[0]]).toFixed(1)} %` : "");
  paint();
};

// --- a tag for each word -------------------------------------------------------------------------------------------------

const numbered = (names) => new Map((names || []).map((name, k) => [name, k + 1]));
const words = numbered(about.words), letters = numbered(about.letters), vectors = numbered(about.vectors);
const spelling = made_of(about.spelling || []), spelled = new Map();
const shape = (word) => {
  if (!spelled.has(word)) {
    const rows = Array.from(word).slice(0, about.longest).map((c) => row(table("characters.weight"), letters.get(c) ?? 0));
    spelled.set(word, through(spelling, rows)[1]);
  }
  return spelled.get(word);
};
const entry = (word) => {
  const lower = word.toLowerCase(), parts = [row(table("words.weight"), words.get(lower) ?? 0), shape(word)];
  if (about.vectors.length) parts.push(row(table("vectors"), vectors.get(word) ?? vectors.get(lower) ?? 0));
  return joined(parts);
};
const best = (scores) => scores.reduce((top, score, k) => (score > scores[top] ? k : top), 0);
// The way through all tags of the highest score.
const way = (scores) => {
  const {values, row: count} = table("transitions"), begin = weights("begin"), end = weights("end"), came = [];
  let score = scores[0].map((value, k) => value + begin[k]);
  for (const own of scores.slice(1)) {
    const from = own.map((_, k) => best(score.map((value, i) => value + values[i * count + k])));
    came.push(from);
    score = own.map((value, k) => value + score[from[k]] + values[from[k] * count + k]);
  }
  const found = [best(score.map((value, k) => value + end[k]))];
  for (const from of came.reverse()) found.unshift(from[found[0]]);
  return found;
};
const tagged = (sentence) => {
  if (!sentence.length) return [];
  const [rows] = through(layers, sentence.map(entry)), scores = rows.map((y) => linear("readout", y));
  held.set(rows[rows.length - 1]);
  return (about.crf ? way(scores) : scores.map(best)).map((k) => about.tags[k]);
};
// Words as they stand between spaces; a mark of punctuation that clings to one of them is a word too.
const cut = (line) =>
  line.split(/\s+/).filter(Boolean).flatMap((word) => {
    if (words.has(word.toLowerCase())) return [word];
    const [, before, middle, after] = word.match(/^([^\p{L}\p{N}]*)(.*?)([^\p{L}\p{N}]*)$/u);
    return [...before, ...(middle ? [middle] : []), ...after];
  });
const seen = new Map();
const mark = () => {
  const lines = text.value.split("\n").map(cut).filter((line) => line.length);
  const found = lines.map((line) => {
    const key = line.join(" ");
    if (!seen.has(key)) {
      if (seen.size > 500) seen.clear();
      seen.set(key, tagged(line));
    }
    return seen.get(key);
  });
  one("tags").replaceChildren(...lines.map((line, n) =>
    made("ol", line.map((word, k) => made("li", [made("bdi", [word]), made("small", [found[n][k]])])), {class: "tagged"})));
  one("said").textContent = `${number.format(lines.reduce((sum, line) => sum + line.length, 0))} words`;
  paint();
};

const act = about.task === "tag" ? mark : classify;
text.addEventListener("input", act);
act();
window.elman = {act, cut, tagged, classified};
