// Layers over sequences, in one direction or both, and what is affine.
const table = (name) => ({values: weights(name), row: about.arrays[name][3]});
const row = (from, k) => from.values.subarray(k * from.row, (k + 1) * from.row);
const linear = (name, x) => {
  const {values, row: width} = table(`${name}.weight`), out = weights(`${name}.bias`).slice();
  f.product(values, out.length, width, x, 0, out, 0);
  return out;
};
const joined = (parts) => {
  const found = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) found.set(part, at), (at += part.length);
  return found;
};

// (what comes out at each step, the first tensor of the state at the end)
const over = (program, width, rows, reverse) => {
  const found = [];
  program.init();
  for (let k = 0; k < rows.length; k++) {
    const t = reverse ? rows.length - 1 - k : k;
    program.x.set(rows[t]);
    program.step();
    found[t] = program.out.slice();
  }
  return [found, program.state.slice(0, width)];
};
const made_of = (layers) =>
  layers.map(({names, width, residual}) => ({programs: names.map((name) => programs[name](weights)), width, residual}));
const through = (layers, rows) => {
  let end = null;
  for (const layer of layers) {
    const both = layer.programs.map((program, k) => over(program, layer.width, rows, k === 1));
    const outputs = rows.map((before, t) => joined(both.map(([found]) => found[t])));
    if (layer.residual) outputs.forEach((output, t) => output.forEach((value, k) => (output[k] = value + rows[t][k])));
    rows = outputs;
    end = joined(both.map(([, last]) => last));
  }
  return [rows, end];
};
