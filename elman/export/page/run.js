// What every page runs with: numbers out of base64, and the functions that a step calls.
const f = {
  // out[at + i] += Σ_j w[i, j] x[from + j]
  product(w, n, k, x, from, out, at) {
    for (let i = 0, row = 0; i < n; i++, row += k) {
      let a = 0, b = 0, c = 0, d = 0, j = 0;
      for (; j + 4 <= k; j += 4) {
        a += w[row + j] * x[from + j];
        b += w[row + j + 1] * x[from + j + 1];
        c += w[row + j + 2] * x[from + j + 2];
        d += w[row + j + 3] * x[from + j + 3];
      }
      for (; j < k; j++) a += w[row + j] * x[from + j];
      out[at + i] += a + b + (c + d);
    }
  },
  sigmoid: (a) => 1 / (1 + Math.exp(-a)),
  fabs: Math.abs,
  maximum: (a, b) => (a > b || a !== a ? a : b),
  minimum: (a, b) => (a < b || a !== a ? a : b),
  fmod: (a, b) => a % b,
  remainder_of(a, b) {
    const r = a % b;
    return r !== 0 && r < 0 !== b < 0 ? r + b : r;
  },
  floordiv(a, b) {
    if (b === 0) return a / b;
    const r = a % b, q = (a - r) / b - (r !== 0 && r < 0 !== b < 0);
    return q - Math.floor(q) > 0.5 ? Math.floor(q) + 1 : Math.floor(q);
  },
  lerp: (a, b, w) => (w < 0.5 && w > -0.5 ? a + w * (b - a) : b - (b - a) * (1 - w)),
  // To the nearest whole number, halves to the even one.
  rint(a) {
    const down = Math.floor(a), part = a - down;
    return part < 0.5 || (part === 0.5 && down % 2 === 0) ? down : part === part ? down + 1 : a;
  },
  // 2/√π exp(-x²) Σ 2ⁿ x²ⁿ⁺¹ / (1 · 3 · … · (2n + 1)): all terms have one sign.
  erf(a) {
    if (!(Math.abs(a) < 6)) return a !== a ? a : Math.sign(a);
    let term = a, sum = a;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * a * a) / (2 * n + 1);
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-a * a) * sum;
  },
  real_of: (a) => a,
  whole_of: Math.trunc,
  int_add: (a, b) => a + b,
  int_sub: (a, b) => a - b,
  int_remainder(a, b) {
    if (b === 0) throw new RangeError("a whole number is divided by zero");
    const r = a % b;
    return r !== 0 && r < 0 !== b < 0 ? r + b : r;
  },
  int_floordiv(a, b) {
    if (b === 0) throw new RangeError("a whole number is divided by zero");
    return Math.floor(a / b);
  },
};

const remembered = (get) => {
  const kept = new Map();
  return (name) => {
    if (!kept.has(name)) kept.set(name, get(name));
    return kept.get(name);
  };
};

const half = (bits) => {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, part = bits & 1023;
  if (exponent === 31) return part ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + part / 1024) : 2 ** -14 * (part / 1024));
};

// (said, base64) -> (name -> its numbers)
const unpacked = (said, text) => {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return (name) => {
    const [kind, at, count, row] = said[name];
    if (kind === "float32") return new Float32Array(bytes.buffer, at, count);
    if (kind === "float64") return new Float64Array(bytes.buffer, at, count);
    if (kind === "float16") return Float32Array.from(new Uint16Array(bytes.buffer, at, count), half);
    const numbers = new Int8Array(bytes.buffer, at, count);
    const scales = new Float32Array(bytes.slice(at + count, at + count + (4 * count) / row).buffer);
    return Float32Array.from(numbers, (number, i) => number * scales[Math.floor(i / row)]);
  };
};
