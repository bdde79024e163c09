"""Lines of native/ that are wrong where their fault is on: `FAULT()`, see `native.py`."""

from __future__ import annotations

from typing import NamedTuple

_LOOPS = ("engines/test_native.py -k 'cases or strides'", "engines/test_native_operations.py", "engines/test_native.py")
_OPERATIONS = ("engines/test_native_operations.py", "engines/test_special_values.py", "engines/test_native.py")
_RAGGED = ("engines/test_native.py -k cases", "recurrent/test_sequences.py", "engines/test_native.py")
_PRODUCTS = ("engines/test_products.py", "engines/test_native.py")


class Line(NamedTuple):
    """name: what is wrong then. file: in native/. old: a text that is there once."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


LINES = (
    # --- features.hpp ---
    Line("a sum without what is left over", "features.hpp", "if (i < n) b += f(i, int(n - i));",
         "if (i < n && !FAULT()) b += f(i, int(n - i));", _OPERATIONS),
    Line("a sum over strides without the first", "features.hpp",
         "for (int64_t i = 0; i < n; i++) total += x[i * s];\n    return total;",
         "for (int64_t i = FAULT(); i < n; i++) total += x[i * s];\n    return total;", _OPERATIONS),
    Line("a product of numbers without the first", "features.hpp", "for (int64_t i = 0; i < n; i++) value *= x[i * s];",
         "for (int64_t i = FAULT(); i < n; i++) value *= x[i * s];", _OPERATIONS),
    Line("the largest passes over NaN", "features.hpp", "if (a != a || (largest", "if ((a != a && !FAULT()) || (largest", _OPERATIONS),
    Line("the largest is the last of equals", "features.hpp", "(largest ? a > best : a < best)",
         "(largest ? a > best || (FAULT() && a == best) : a < best || (FAULT() && a == best))", _OPERATIONS),
    Line("any is all and all is any", "features.hpp", "bool value = all;", "bool value = all != FAULT();", _OPERATIONS),
    Line("a running sum begins with one", "features.hpp", "T total = 0;\n        for (int64_t i = 0; i < n; i++) out[at[0]",
         "T total = T(FAULT());\n        for (int64_t i = 0; i < n; i++) out[at[0]", _OPERATIONS),
    Line("softmax takes nothing off first", "features.hpp", "v[q] = x[(i + q) * s] - top;",
         "v[q] = x[(i + q) * s] - (FAULT() ? T(0) : top);", _OPERATIONS),
    Line("softmax does not count the first", "features.hpp", "total += e[q];", "total += FAULT() && i + q == 0 ? T(0) : e[q];",
         _OPERATIONS),
    Line("the gradient of softmax does not count the first", "features.hpp", "total += logarithm ? g[i * sg] : g[i * sg] * y[i * sy];",
         "total += FAULT() && i == 0 ? T(0) : logarithm ? g[i * sg] : g[i * sg] * y[i * sy];", _OPERATIONS),
    Line("lanes behind the end count in a variance", "features.hpp", "for (int q = m; q < L; q++) d[q] = 0;",
         "for (int q = m; q < L; q++) d[q] = FAULT() ? d[q] : 0;", _OPERATIONS),
    Line("a variance without epsilon", "features.hpp", "squares / T(n) + T(op.number)", "squares / T(n) + (FAULT() ? T(0) : T(op.number))",
         _OPERATIONS),
    Line("a layer norm without its scale", "features.hpp", "if (scale) v *= some(scale + i, m);",
         "if (scale && !FAULT()) v *= some(scale + i, m);", _OPERATIONS),
    Line("a layer norm without its shift", "features.hpp", "if (shift) v += some(shift + i, m);",
         "if (shift && !FAULT()) v += some(shift + i, m);", _OPERATIONS),
    Line("a layer norm hands on another mean", "features.hpp", "if (means) means[at[1]] = mean;",
         "if (means) means[at[1]] = mean + T(FAULT());", _LOOPS),
    Line("a layer norm hands on another deviation", "features.hpp", "if (inverses) inverses[at[2]] = inverse;",
         "if (inverses) inverses[at[2]] = inverse + T(FAULT());", _LOOPS),
    Line("the gradient of a layer norm keeps its mean", "features.hpp", "(u(i, m) - first - normal(i, m) * second)",
         "(u(i, m) - (FAULT() ? T(0) : first) - normal(i, m) * second)", _LOOPS),
    Line("the gradient of a layer norm without its scale", "features.hpp", "return !scale ? v : v * some(scale + i, m);",
         "return !scale || FAULT() ? v : v * some(scale + i, m);", _LOOPS),
    Line("a product of values forgets its start", "features.hpp", "sum[r][q] = start ? get(", "sum[r][q] = start && !FAULT() ? get(",
         _OPERATIONS),
    Line("a product of values leaves out a column", "features.hpp", "if (n < N) strip(n, Count<0>(), int(N - n));",
         "if (n < N && !FAULT()) strip(n, Count<0>(), int(N - n));", _OPERATIONS),
    Line("a product over strides without the first", "features.hpp",
         "for (int64_t k = 0; k < K; k++) total += x[m * xm + k * xk]", "for (int64_t k = FAULT(); k < K; k++) total += x[m * xm + k * xk]",
         _OPERATIONS),
    Line("a product of lines without the last", "features.hpp", "total = dot(x + m * xm, y + n * yn, K);",
         "total = dot(x + m * xm, y + n * yn, K - FAULT());", _OPERATIONS),
    Line("a product over strides forgets its start", "features.hpp", "= s ? s[m * sm + n * sn] + total : total;",
         "= s && !FAULT() ? s[m * sm + n * sn] + total : total;", _OPERATIONS),
    Line("-1 is not the last place", "features.hpp", "given < 0 && behind ? given + op.k : given;",
         "given < 0 && behind && !FAULT() ? given + op.k : given;", _OPERATIONS),
    Line("an index one too large is taken", "features.hpp", "found < 0 || found >= op.k)", "found < 0 || found >= op.k + FAULT())",
         ("engines/test_lookups.py", "engines/test_native.py -k index")),
    Line("an index below zero is taken", "features.hpp", "if (found < 0 ||", "if ((found < 0 && !FAULT()) ||",
         ("engines/test_lookups.py", "engines/test_native.py -k index")),
    Line("scatter_add overwrites", "features.hpp", "out = add ? out + in : in;", "out = add && !FAULT() ? out + in : in;", _OPERATIONS),
    # --- pointwise.hpp ---
    Line("every row takes the second operand of the first", "pointwise.hpp", "rb = arity > 1 ? f.row(*pb) : n,",
         "rb = arity > 1 ? f.row(*pb) * !FAULT() : n,", _LOOPS),
    Line("a vector that is not full is left out", "pointwise.hpp",
         "    if (i < n) {                                                       \\\n",
         "    if (i < n && !FAULT()) {                                           \\\n", _LOOPS),
    Line("where takes the other", "pointwise.hpp", "o[i] = c[i] ? x : y;", "o[i] = (c[i] != 0) != FAULT() ? x : y;", _OPERATIONS),
    Line("a number is another", "pointwise.hpp", "o[i] = number;", "o[i] = number + O(FAULT());", _OPERATIONS),
    Line("a division by zero is not told", "pointwise.hpp", "zero |= b[i] == 0,", "zero |= b[i] == 0 && !FAULT(),",
         ("engines/test_lookups.py", *_OPERATIONS)),
    Line("chunks of a strided row are those of the first", "pointwise.hpp", "k * pa->stride[2] + l * sa, sa, m, ta)",
         "k * pa->stride[2] + l * sa * !FAULT(), sa, m, ta)", _OPERATIONS),
    Line("a dimension of the first operand is not walked", "pointwise.hpp", "a + r * ra + i * pa->stride[0]",
         "a + r * ra + i * pa->stride[0] * !FAULT()", _OPERATIONS),
    # --- products.hpp ---
    Line("a turned weight is packed without its last rows", "products.hpp", "for (; k < K; k++)\n                for (int64_t i = j;",
         "for (; k < K && !FAULT(); k++)\n                for (int64_t i = j;", _LOOPS),
    Line("a deep product forgets what came before", "products.hpp", "if (add) sum[r][q] +=", "if (add && !FAULT()) sum[r][q] +=", _PRODUCTS),
    Line("the last columns of a product forget their start", "products.hpp",
         "else if (q * L < n)\n                        sum[r][q] = load_part(from, int(n - q * L));",
         "else if (q * L < n && !FAULT())\n                        sum[r][q] = load_part(from, int(n - q * L));", _LOOPS),
    Line("all rows of a product start from the first one's", "products.hpp", "*si = start ? start + row * lds : nullptr;",
         "*si = start ? start + row * lds * !FAULT() : nullptr;", _LOOPS),
    # --- matrices.hpp ---
    Line("a sum over many rows is that of the last", "matrices.hpp", "out[n] = k0 > 0 ? out[n] + sum : sum;",
         "out[n] = k0 > 0 && !FAULT() ? out[n] + sum : sum;", _PRODUCTS),
    Line("a sum over many rows, of columns side by side, is that of the last", "matrices.hpp",
         "k0 > 0 ? load(out + n + i * L) + sum[i] : sum[i]", "k0 > 0 && !FAULT() ? load(out + n + i * L) + sum[i] : sum[i]", _PRODUCTS),
    Line("a product between stages forgets its start", "matrices.hpp", "start && k0 == 0 ?", "start && k0 == 0 && !FAULT() ?", _PRODUCTS),
    Line("what starts from a sum finds a part of it", "matrices.hpp", "if (p.start && p.start == products[j].out && p.m != all) return all;",
         "if (p.start && p.start == products[j].out && p.m != all && !FAULT()) return all;", _PRODUCTS),
    # --- draws.hpp ---
    Line("random floats are a little less", "draws.hpp", "float(int32_t(words[i] >> 8))", "float(int32_t(words[i] >> (FAULT() ? 9 : 8)))",
         _PRODUCTS),
    Line("random doubles have 32 bits", "draws.hpp", "<< 32 | word[HALF])", "<< 32 | (FAULT() ? 0u : word[HALF]))", _PRODUCTS),
    Line("random words are mixed less", "draws.hpp", "    inject<3>(key, x, y);", "    if (!FAULT()) inject<3>(key, x, y);", _PRODUCTS),
    Line("random numbers begin with the first step's", "draws.hpp", "uint32_t(d.first + s)", "uint32_t((FAULT() ? 0 : d.first) + s)",
         _PRODUCTS),
    # --- loop.hpp ---
    Line("rows without a step have no final state", "loop.hpp", "if (part == 0) finish(i, first,", "if (part == 0 && !FAULT()) finish(i, first,",
         _RAGGED),
    Line("a reversed loop runs forward", "loop.hpp", "const int64_t t = c.reverse ?", "const int64_t t = c.reverse && !FAULT() ?", _LOOPS),
    Line("rows that begin later start from nothing", "loop.hpp", "copy_rows(other[i] + before * width,",
         "if (!FAULT()) copy_rows(other[i] + before * width,", _RAGGED),
    Line("rows go on from elsewhere when others begin", "loop.hpp", "if (s.emit >= 0) copy_rows(other[i], width, written",
         "if (s.emit >= 0 && !FAULT()) copy_rows(other[i], width, written", _RAGGED),
    Line("rows that end keep no state", "loop.hpp", "if (next < now) {", "if (next < now && !FAULT()) {", _LOOPS),
    Line("what has no rows is the first step's", "loop.hpp", "+ t * c.sequences[buffer.index].stride", "+ !FAULT() * t * c.sequences[buffer.index].stride",
         ("engines/test_native.py -k step_by_step", "engines/test_native.py")),
    Line("a state that no output holds is not handed on", "loop.hpp", "spare[i] = other[i], other[i] = written;",
         "if (!FAULT()) spare[i] = other[i], other[i] = written;", _LOOPS),
    Line("every block of rows reads the first one's sequence", "loop.hpp",
         "data = c.sequences[buffer.index].data + (offset + first + row) * stride", "data = c.sequences[buffer.index].data + (offset + first + row * !FAULT()) * stride",
         _LOOPS),
    Line("a failure is not told", "loop.hpp", "if (f.failure.happened && !__atomic_exchange_n", "if (f.failure.happened && !FAULT() && !__atomic_exchange_n",
         ("engines/test_lookups.py",)),
    Line("a loop does not stop when it is told to", "loop.hpp", "if (c.stop()) __atomic", "if (c.stop() && !FAULT()) __atomic",
         ("test_process.py", "engines/test_threads.py")),
)  # fmt: skip
