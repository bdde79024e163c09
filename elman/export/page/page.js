// What every page shows: the hidden state as strips of cells, and shares as bars.
const one = (id) => document.getElementById(id);
const about = JSON.parse(one("about").textContent);
const number = new Intl.NumberFormat("en");

const made = (name, parts = [], how = {}) => {
  const element = document.createElement(name);
  element.append(...parts);
  for (const [key, value] of Object.entries(how)) element.setAttribute(key, value);
  return element;
};

// A symbol as one can see it.
const visible = (symbol) =>
  symbol.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/[\u0000-\u001f\u007f-\u009f]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);

// strips: [{name, values}]; each is drawn as cells, orange above zero and blue below, the fuller the further.
const strips = (parts) => {
  const drawn = parts.map((part) => {
    const canvas = made("canvas", [], {role: "img", "aria-label": `${part.name}: ${part.values.length} units`});
    one("state").append(made("div", [part.name], {class: "soft"}), canvas);
    return canvas;
  });
  const paint = () => {
    const style = getComputedStyle(document.body), color = (name) => style.getPropertyValue(name).trim();
    const up = color("--up"), down = color("--down"), ground = color("--panel");
    parts.forEach(({values}, k) => {
      const canvas = drawn[k], width = canvas.clientWidth, scale = window.devicePixelRatio || 1;
      if (!width) return;
      const cell = values.length > 512 ? 8 : values.length > 64 ? 12 : 20, columns = Math.floor((width + 1) / cell);
      const height = Math.ceil(values.length / columns) * cell;
      if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
        canvas.width = Math.round(width * scale);
        canvas.height = Math.round(height * scale);
        canvas.style.height = `${height}px`;
      }
      const pen = canvas.getContext("2d");
      pen.setTransform(scale, 0, 0, scale, 0, 0);
      pen.clearRect(0, 0, width, height);
      for (let i = 0; i < values.length; i++) {
        const x = (i % columns) * cell, y = Math.floor(i / columns) * cell, value = values[i];
        pen.globalAlpha = 1;
        pen.fillStyle = ground;
        pen.fillRect(x, y, cell - 1, cell - 1);
        pen.globalAlpha = Math.min(Math.abs(value), 1) || 0;
        pen.fillStyle = value > 0 ? up : down;
        pen.fillRect(x, y, cell - 1, cell - 1);
      }
    });
  };
  window.addEventListener("resize", paint);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  return paint;
};

// rows: [{name, share}]; act: what a click on the k-th does, if anything. What is there is kept, so that focus stays.
const bars = (list, rows, act) => {
  while (list.children.length < rows.length) {
    const k = list.children.length, parts = [made("b"), made("i"), made("span")];
    const bar = made(act ? "button" : "div", parts, act ? {class: "bar", type: "button"} : {class: "bar"});
    if (act) bar.addEventListener("click", () => act(k));
    list.append(made("li", [bar]));
  }
  while (list.children.length > rows.length) list.lastChild.remove();
  rows.forEach(({name, share}, k) => {
    const [word, bar, percent] = list.children[k].firstChild.children;
    word.textContent = word.title = name;
    bar.style.setProperty("--share", `${(100 * share).toFixed(1)}%`);
    percent.textContent = `${(100 * share).toFixed(1)} %`;
  });
};

const softmax = (scores, heat = 1) => {
  let top = -Infinity, total = 0;
  for (const score of scores) if (score > top) top = score;
  const shares = Float64Array.from(scores, (score) => Math.exp((score - top) / heat));
  for (const share of shares) total += share;
  return shares.map((share) => share / total);
};
