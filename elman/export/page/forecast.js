// A forecaster: numbers that may be changed, and what comes next as quantiles of paths that are drawn, or as they are told.
const text = one("text"), chart = one("chart"), FAR = 1e4, COUNT = 200, SLICE = 12;
const layers = made_of(about.layers).map(({programs: [program], width, residual}) => ({program, width, residual}));
const held = new Float32Array(about.width), {lags, context, horizon, levels} = about, register = Math.max(...lags);
const paint = strips([{name: "the highest layer at the last step that is known", values: held}]);
const affine = (name, x) => {
  const out = weights(`${name}.bias`).slice();
  f.product(weights(`${name}.weight`), out.length, x.length, x, 0, out, 0);
  return out;
};
const step = (x) => {
  for (const {program, residual} of layers) {
    program.x.set(x);
    program.step();
    x = residual ? program.out.map((value, k) => value + x[k]) : program.out.slice();
  }
  return x;
};
const noted = () => layers.map(({program}) => [program.state.slice(), program.whole.slice()]);
const back = (states) => layers.forEach(({program}, k) => (program.state.set(states[k][0]), program.whole.set(states[k][1])));

// --- random numbers ------------------------------------------------------------------------------------------------------

// Uniform, in [0, 1): mulberry32.
const dice = (seed) => () => {
  seed = (seed + 0x6d2b79f5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
};
const normal = (uniform) => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
const softplus = (value) => (value > 20 ? value : Math.log1p(Math.exp(value)));
const gamma = (shape, uniform) => { // Marsaglia and Tsang
  if (shape < 1) return gamma(shape + 1, uniform) * (1 - uniform()) ** (1 / shape);
  const d = shape - 1 / 3, c = 1 / Math.sqrt(9 * d);
  for (;;) {
    const x = normal(uniform), v = (1 + c * x) ** 3;
    if (v > 0 && Math.log(1 - uniform()) < 0.5 * x * x + d * (1 - v + Math.log(v))) return d * v;
  }
};
const poisson = (mean, uniform) => {
  if (mean >= 60) { // Cornish and Fisher
    const x = normal(uniform);
    return Math.max(Math.floor(mean + Math.sqrt(mean) * x + (x * x - 1) / 6 + 0.5), 0);
  }
  let count = 0, share = Math.exp(-mean), left = uniform() - share;
  while (left >= 0 && count < 1000) left -= share *= mean / ++count;
  return count;
};
const LEAST = 1e-4;
const laws = {
  gaussian: (raw, scale, uniform) => raw[0] + (softplus(raw[1]) + LEAST) * normal(uniform),
  "student-t": (raw, scale, uniform) => {
    const freedom = 2.1 + softplus(raw[2]), far = Math.expm1((-2 / freedom) * Math.log(1 - uniform()));
    return raw[0] + (softplus(raw[1]) + LEAST) * Math.sqrt(freedom * far) * Math.cos(2 * Math.PI * uniform());
  },
  "negative-binomial": (raw, scale, uniform) => {
    const mean = (softplus(raw[0]) + LEAST) * scale, shape = 1 / (softplus(raw[1]) + 1e-3);
    return poisson((gamma(shape, uniform) * mean) / shape, uniform) / scale;
  },
};

// --- a forecast ----------------------------------------------------------------------------------------------------------

const parsed = (said) => {
  const y = said.split(/[\s,;]+/).filter(Boolean).map((token) => {
    if (/^(-|nan)$/i.test(token)) return NaN;
    const value = Number(token);
    if (!Number.isFinite(value)) throw new RangeError(`“${token.slice(0, 20)}” is no number; a gap is -`);
    if (about.counts && (value < 0 || value % 1)) throw new RangeError(`${token} is no count`);
    return value;
  });
  if (!y.some(Number.isFinite)) throw new RangeError("a forecast goes on from a number at least");
  return y;
};
const between = (sorted, q) => {
  const at = q * (sorted.length - 1), low = Math.floor(at), value = sorted[low];
  return value + (at - low) * ((sorted[low + 1] ?? value) - value);
};
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
// Where numbers lie, and how far apart.
const spread = (y) => {
  const there = Float64Array.from(y.filter(Number.isFinite)).sort();
  if (about.counts) return [0, there.length ? mean(there) : 0];
  if (!there.length) return [NaN, 0];
  const middle = between(there, 0.5), apart = between(there, 0.75) - between(there, 0.25);
  const scale = apart / 1.35 || 1.25 * mean(there.map((value) => Math.abs(value - middle)));
  return [middle, there.length >= 3 && scale > 1e-12 * Math.abs(middle) ? scale : 0];
};
const scaling = (y, earlier) => {
  let [loc, scale] = spread(y.slice(-context));
  if (!(scale > 0)) {
    const [whole, wider] = earlier?.scale > 0 ? [earlier.loc, earlier.scale] : spread(y);
    loc = Number.isNaN(loc) ? whole : loc;
    scale = wider;
  }
  return [loc, scale > 0 ? scale : about.spread];
};
// What is known of a series' step besides its number.
const features = (series, t) => {
  const row = series.start + t - about.first, width = about.calendar;
  if (row < 0 || row + 1 > about.words.length) throw new RangeError(`this page knows its calendar to ${about.words.at(-1)}`);
  return [...(width ? weights("calendar").subarray(row * width, (row + 1) * width) : []), ...series.static];
};
const word = (series, t) => about.words[series.start + t - about.first];

// Reads what is known: {loc, scale, past, known, told, again}. told: what a step reads; again() goes back to before it.
const read = (series, y) => {
  const [loc, scale] = scaling(y, series.earlier), t = y.length, z = [], there = [];
  let last = series.earlier?.last ?? y.find(Number.isFinite);
  const scaled = (value) => Math.min(Math.max((value - loc) / scale, -FAR), FAR);
  for (let i = -context - register; i < t; i++) {
    const known = i >= 0 && Number.isFinite(y[i]);
    if (known) last = y[i];
    z[i + context + register] = scaled(last);
    there[i + context + register] = Number(known);
  }
  const told = (past, known, i) => {
    const at = past.length;
    return Float32Array.from([...lags.map((lag) => past[at - lag]), ...lags.map((lag) => known[at - lag]), ...features(series, i)]);
  };
  layers.forEach(({program}) => program.init());
  const offset = context + register;
  let h = null;
  for (let i = t - context; i < t; i++) {
    const at = i + offset;
    h = step(told(z.slice(at - register, at), there.slice(at - register, at), i));
  }
  if (h) held.set(h);
  const states = noted(), past = z.slice(-register), known = there.slice(-register);
  return {loc, scale, past, known, told, again: () => back(states)};
};
const rawOf = (x) => {
  const raw = affine("readout", step(x)), base = affine("linear", x);
  if (about.law === "quantiles") return raw.map((value, k) => value + base[Math.floor(k / levels.length)]);
  raw[0] += base[0];
  return raw;
};

// Yields from time to time; what is found: {quantiles: [horizon][levels], mean: [horizon]}.
function* forecast(series, y, count = COUNT, uniform = dice(0)) {
  const {loc, scale, past, known, told, again} = read(series, y), t = y.length;
  const steps = Array.from({length: horizon}, (_, k) => k);
  if (about.law === "quantiles") {
    const found = rawOf(told(past, known, t));
    const quantiles = steps.map((k) => {
      const own = Float64Array.from(found.subarray(k * levels.length, (k + 1) * levels.length));
      if (about.ahead) {
        const x = features(series, t + k), w = weights("ahead.weight");
        for (let q = 0; q < own.length; q++) for (let i = 0; i < x.length; i++) own[q] += w[q * x.length + i] * x[i];
      }
      return Array.from(own.sort(), (value) => loc + scale * value);
    });
    return {quantiles, mean: quantiles.map((row) => row.reduce((sum, value, q) => sum + about.shares[q] * value, 0))};
  }
  const draw = laws[about.law], drawn = steps.map(() => []);
  const summed = () => ({
    quantiles: drawn.map((row) => (row = Float64Array.from(row).sort(), levels.map((level) => between(row, level)))),
    mean: drawn.map(mean),
  });
  for (let n = 0; n < count; n++) {
    const own = past.slice(), seen = known.slice();
    again();
    for (const k of steps) {
      const z = draw(rawOf(told(own, seen, t + k)), scale, uniform);
      own.push(z), seen.push(1);
      drawn[k].push(loc + scale * z);
    }
    yield n >= 49 ? summed : null;
  }
  return summed();
}
const forecasted = (series, y, count, uniform) => {
  const running = forecast(series, y, count, uniform);
  for (;;) {
    const {done, value} = running.next();
    if (done) return value;
  }
};

// --- the picture ---------------------------------------------------------------------------------------------------------

const svg = (name, how, ...parts) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(how)) element.setAttribute(key, value);
  element.append(...parts);
  return element;
};
// How many digits tell the numbers of a series apart, four of its scale among them.
const digitsOf = (series, y, least) => {
  const apart = Math.max(...y.filter(Number.isFinite).map(Math.abs)) / scaling(y, series.earlier)[1];
  return Math.min(Math.max(least, Math.ceil(Math.log10(Math.max(apart, 1))) + 4), 17);
};
let digits = 4;
const short = (value) => new Intl.NumberFormat("en", {maximumSignificantDigits: digits}).format(value);
const BANDS = [[0.025, 0.975, "95 %"], [0.1, 0.9, "80 %"], [0.25, 0.75, "50 %"]];
let shown = null;
const draw = () => {
  if (!shown || !chart.clientWidth) return;
  const {series, y, found} = shown, width = chart.clientWidth, height = 300, right = 12, top = 12, bottom = 34;
  digits = digitsOf(series, y, 4);
  if (digits < 8) digits = 4; // the scale of its numbers shows in as many
  const t = y.length, first = Math.max(t - 3 * Math.max(horizon, 12), 0), last = t + horizon - 1;
  const level = (k, q) => found.quantiles[k][levels.indexOf(q)];
  const heights = [...y.slice(first).filter(Number.isFinite), ...(found ? found.quantiles.flatMap((row) => [row[0], row.at(-1)]) : [])];
  let low = Math.min(...heights), high = Math.max(...heights);
  if (!(high > low)) (low -= 1), (high += 1);
  const size = 10 ** Math.floor(Math.log10((high - low) / 5)), unit = [1, 2, 5, 10].map((n) => n * size).find((n) => (high - low) / n <= 5);
  const begin = Math.ceil(low / unit) * unit, ticks = [];
  for (let k = 0; begin + k * unit <= high + 1e-9 * unit; k++) ticks.push(begin + k * unit);
  const name = (value) => short(Math.abs(value) < 1e-9 * unit ? 0 : value);
  const left = Math.max(56, 12 + 8 * Math.max(...ticks.map((value) => name(value).length)));
  const x = (i) => left + ((width - left - right) * (i - first)) / Math.max(last - first, 1);
  const at = (value) => top + ((height - top - bottom) * (high - value)) / (high - low);
  const parts = [];
  for (const value of ticks) {
    parts.push(svg("line", {x1: left, x2: width - right, y1: at(value), y2: at(value), class: "rule"}));
    parts.push(svg("text", {x: left - 8, y: at(value) + 4, "text-anchor": "end"}, name(value)));
  }
  const known = Array.from({length: t - first}, (_, k) => first + k).filter((i) => Number.isFinite(y[i]));
  if (found) {
    const from = known.length ? [[known.at(-1), y[known.at(-1)]]] : [];
    for (const [a, b] of BANDS) {
      const edge = (q) => [...from, ...found.quantiles.map((_, k) => [t + k, level(k, q)])];
      const corners = [...edge(a), ...edge(b).reverse()].map(([i, value]) => `${x(i).toFixed(1)},${at(value).toFixed(1)}`);
      parts.push(svg("polygon", {points: corners.join(" "), class: "band"}));
    }
    const middle = [...from, ...found.quantiles.map((_, k) => [t + k, level(k, 0.5)])];
    parts.push(svg("polyline", {points: middle.map(([i, value]) => `${x(i)},${at(value)}`).join(" "), class: "middle"}));
    if (horizon === 1) parts.push(svg("circle", {cx: x(t), cy: at(level(0, 0.5)), r: 3, class: "dot"}));
  }
  let line = "";
  for (const i of known) line += `${line && Number.isFinite(y[i - 1]) ? "L" : "M"}${x(i).toFixed(1)},${at(y[i]).toFixed(1)}`;
  parts.push(svg("path", {d: line, class: "past"}));
  for (const i of known) {
    const alone = !Number.isFinite(y[i - 1]) && !Number.isFinite(y[i + 1]);
    if (alone) parts.push(svg("circle", {cx: x(i), cy: at(y[i]), r: 2, class: "past"}));
  }
  parts.push(svg("line", {x1: x(t - 0.5), x2: x(t - 0.5), y1: top, y2: height - bottom, class: "now"}));
  const label = (i, anchor) => svg("text", {x: x(i), y: height - 10, "text-anchor": anchor}, word(series, i) ?? "");
  parts.push(label(first, "start"), label(last, "end"));
  const space = 8 * String(word(series, t) ?? "").length;
  if (t > first && x(t) - x(first) > 1.6 * space && x(last) - x(t) > 1.6 * space) parts.push(label(t, "middle"));
  chart.setAttribute("height", height);
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  chart.replaceChildren(...parts);
  if (!found) return;
  const said = (k) => `${word(series, t + k)}: ${short(level(k, 0.5))}, and 4 times in 5 between ${short(level(k, 0.1))} and ${short(level(k, 0.9))}`;
  chart.setAttribute("aria-label", `${series.name}: ${said(horizon - 1)}`);
  one("said").textContent = said(0) + (horizon > 1 ? `. ${said(horizon - 1)}.` : ".");
  const cells = (row, name) => made("tr", row.map((value) => made(name, [value])));
  const rows = found.quantiles.map((_, k) => cells([
    word(series, t + k), short(found.mean[k]), short(level(k, 0.5)), ...BANDS.map(([a, b]) => `${short(level(k, a))} … ${short(level(k, b))}`),
  ], "td"));
  one("table").replaceChildren(cells([about.time, "mean", "median", ...BANDS.map(([, , name]) => name)], "th"), ...rows);
};

// --- what one does -------------------------------------------------------------------------------------------------------

const choice = one("series");
const now = () => about.series[choice ? choice.selectedIndex : 0];
// Seven digits are what the network reads, of a series that does not lie far from 0.
const plain = (series) => {
  const many = digitsOf(series, series.y, 7);
  return series.y.map((value) => (value === null ? "-" : String(value % 1 ? Number(value.toPrecision(many)) : value))).join(" ");
};
let turn = 0;
const act = (whole = false) => {
  const series = now(), mine = ++turn;
  let y = null, running = null;
  try {
    y = parsed(text.value);
    features(series, y.length + horizon - 1);
    running = forecast(series, y);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    one("said").textContent = error.message;
    return;
  }
  const slice = () => {
    if (mine !== turn) return; // another number has been typed meanwhile
    const begun = performance.now();
    let next = running.next();
    while (!next.done && (whole || performance.now() - begun < SLICE)) next = running.next();
    if (next.done || next.value) {
      shown = {series, y, found: next.done ? next.value : next.value()};
      draw();
      paint();
    }
    if (!next.done) setTimeout(slice);
  };
  slice();
};
const reset = () => {
  text.value = plain(now());
  act();
};
text.addEventListener("input", () => act());
choice?.addEventListener("change", reset);
one("reset").addEventListener("click", reset);
window.addEventListener("resize", draw);
reset();
window.elman = {act, parsed, forecasted, about};
