// A pass: all that a plan computes between the tensors that come in and those that go out, in one call. Its pieces run in
// order: programs on the rows of all steps, products, the loop, copies of rows. What lives between pieces has its place in
// one block of memory, shared out by lifetime.
//
// Part of bind.cpp, whose words for tensors and workspaces it uses.
#pragma once

#include "arranged.hpp"

namespace elman {
namespace {

struct Spot {
    int64_t place, offset, stride;  // bytes behind the place's beginning; elements between rows
};

// A size: a number, or so many times a number of rows.
struct Size {
    int64_t factor, rows;
    int64_t operator()(const Counts& c) const { return factor * c.of[rows]; }
};

struct Side {
    int64_t place, offset, row, column;  // place -1: none. row, column: strides in elements
    int64_t along;                       // which of them leads along rows: 0 none, 1 row, 2 column
};

struct ProductOf {
    bool sums;
    Size m, n, k;
    Side a, b, start, times, out;
};

// delay: `to` at every step is `from` at the step that ran before it, `start` at a row's first. ends: `to` is `from` at a row's
// last step that ran. move: `to` is `from` in another order.
struct PassPiece {
    enum Kind { program, loop, products, copy, delay, ends, move } kind;
    const Interpreter* interpreter;  // program, loop: spots are its constants, sequences, starts, emits, finals
    int64_t rows;                    // program: on how many rows it runs; copy: of how many; move: in which Order
    bool reverse;
    std::vector<Spot> spots;
    std::vector<ProductOf> of;
    Spot from, start, to;
    int64_t width;  // copy, delay, ends, move: bytes of a row
};

// What comes out: a tensor that was made; or, of a trail, the steps that begin at `step` (0 or 1). detach: as a tensor of its own.
struct Outcome {
    int64_t made, step;
    bool detach;
};

// For Python, in order.
const char* const ROWS_NAMES[] = {"one", "batch", "all", "steps", "trail", "given steps", "given batch"};
const char* const ORDER_NAMES[] = {"pack", "unpack", "start", "end"};
const char* const PLACE_NAMES[] = {"given", "made", "kept", "within"};
const char* const PIECE_NAMES[] = {"program", "loop", "products", "copy", "delay", "ends", "move"};

std::vector<int64_t> numbers(nb::handle list) { return nb::cast<std::vector<int64_t>>(list); }

Spot spot_of(nb::handle list) {
    const auto n = numbers(list);
    return {n.at(0), n.at(1), n.at(2)};
}

// Memory that passes of one thread hand to each other while a call runs segment by segment (`Spare::calls` of them at once). An
// allocation of torch's asks for more than the hole of its own size has, and what a segment keeps behind it makes that last.
struct Spare {
    using Block = std::pair<int64_t, nb::object>;
    static inline thread_local int64_t calls = 0;
    static inline thread_local std::vector<Block> blocks;

    // A block of at least so many bytes, where there is one; smaller ones go.
    static Block taken(int64_t bytes) {
        for (size_t i = 0; i < blocks.size(); i++)
            if (blocks[i].first >= bytes) {
                Block found = std::move(blocks[i]);
                blocks.erase(blocks.begin() + std::ptrdiff_t(i));
                return found;
            }
        blocks.clear();
        return {0, nb::object()};
    }

    static void count(bool begins) {
        calls += begins ? 1 : -1;
        if (calls <= 0) blocks.clear();
    }
};

// How the steps of a sequence lie that is packed by the call: steps of rows, and rows of a step, so many bytes apart. Zero where all
// of it lies in order.
struct StepStrides {
    int64_t inner = 1, outer_step = 0, inner_step = 0;

    // False where it lies in no such way.
    bool of(const Described& known) {
        int64_t width, step;
        if (known.dimensions < 2 || known.bits % 8 || known.lanes != 1 || !in_one_line(known, 2, width, step) || (step != 1 && width > 1)) return false;
        const int64_t bytes = known.bits / 8;
        inner = known.sizes[1], outer_step = known.strides[0] * bytes, inner_step = known.strides[1] * bytes;
        return outer_step != 0;
    }
};

// What a pass computes at a time, where it can run tile by tile: so many bytes of values that have rows, which stay in the last cache; and at
// least so many rows, as each tile packs its weights and adds up their gradients anew. Tests make both smaller.
int64_t tile_bytes = 8 << 20, tile_rows = 1024;

class Pass {
public:

    // See elman/engines/native/passes.py, which makes these lists.
    Pass(const Kernels& kernels, bool wide, const nb::list& places, const nb::list& given, const nb::list& made, const nb::list& pieces,
         const nb::list& outcomes, const nb::object& tiles, const nb::object& failed, const nb::object& threads, const nb::object& empty,
         const nb::object& empty_strided, const nb::object& uint8)
        : kernels_(kernels), wide_(wide), tiled_(!tiles.is_none()), given_(numbers(given)), failed_(failed), threads_(threads), empty_(empty), empty_strided_(empty_strided), uint8_(uint8) {
        int64_t widest = 0;
        for (const nb::handle one : places) {
            const auto n = numbers(one);
            places_.push_back({Place::Kind(n.at(0)), n.at(1), n.at(2), n.at(3), n.at(4), n.at(5), n.at(6), n.at(7), n.at(8)});
            if (places_.back().kind == Place::given && n[2] > widest) widest = n[2];
        }
        zeros_.assign(size_t(widest), 0);
        if (poisoned) zeros_.resize(size_t(widest + BEHIND), char(0xff));
        for (const nb::handle one : made) new_.push_back({nb::borrow(one[0]), numbers(one[1]), PyTuple_Check(nb::object(one[1]).ptr()) != 0});
        for (const New& one : new_)
            if (one.sizes.size() > New::MOST) throw std::invalid_argument("more dimensions than a tensor may have");
        for (const nb::handle one : pieces) pieces_.push_back(piece(one));
        for (const nb::handle one : outcomes) {
            const auto n = numbers(one);
            outcomes_.push_back({n.at(0), n.at(1), n.at(2) != 0});
        }
        if (!tiled_) return;
        for (const nb::handle one : nb::borrow<nb::list>(tiles[0])) totals_.push_back(size_t(nb::cast<int64_t>(one)));
        for (const nb::handle one : nb::borrow<nb::list>(tiles[1])) {
            carried_.push_back({spot_of(one[0]), spot_of(one[1]), nb::cast<int64_t>(one[2])});
        }
        for (const PassPiece& one : pieces_) reverse_ |= one.kind == PassPiece::loop && one.reverse;
        for (const Place& place : places_)
            if (place.kind != Place::within && (place.rows == ALL || place.rows == TRAIL)) row_bytes_ += place.width;
    }

    // (T, B, seed, first step, inputs) -> what comes out, a tuple. An input that is None is zeros.
    nb::object run(const nb::args& args) {
        const int64_t steps = entry(args, 0), batch = entry(args, 1);
        if (steps <= 0 || batch <= 0) {
            nb::object results = nb::steal(PyObject_CallObject(empty_.ptr(), args.ptr()));
            if (!results.is_valid()) throw nb::python_error();
            return results;
        }
        return on(Counts(steps, batch), args, 4);
    }

    // (T, B, N) -> bytes that a call has at once of torch's memory, if its inputs lie in order.
    int64_t bytes(int64_t steps, int64_t batch, int64_t rows) const {
        Counts counts(steps, batch);
        counts.of[ALL] = rows, counts.of[TRAIL] = rows + batch;
        int64_t all = 0;
        const int64_t tile = tile_of(counts);
        for (const int64_t block : arrange(places_, tile < counts.steps ? Counts(tile, batch) : counts).blocks) all += block;
        for (const Place& place : places_)
            if (place.kind == Place::made) all += place.bytes(counts);
        return all;
    }

    // (the rows of each step, inputs) -> what comes out, for a pass on packed rows.
    nb::object run_packed(const nb::args& args) { return on(Counts(numbers(args[0])), args, 1); }

    // (Pieces, whether states change places with their rows, inputs as users have them) -> what comes out, as they have it, for a
    // pass that packs and unpacks sequences itself.
    nb::object run_laid(const nb::args& args) {
        const nb::handle pieces = PyTuple_GET_ITEM(args.ptr(), 0);
        return on(Counts(nb::cast<const Pieces&>(pieces), PyTuple_GET_ITEM(args.ptr(), 1) == Py_True), args, 2);
    }

    // How many steps a call computes at a time.
    int64_t tile_of(const Counts& counts) const {
        if (!tiled_ || counts.of[ALL] != counts.steps * counts.batch || !counts.of[ALL] || !counts.sizes.empty()) return counts.steps;
        const int64_t fitting = tile_bytes / (row_bytes_ * counts.batch + 1), least = (tile_rows + counts.batch - 1) / counts.batch;
        const int64_t most = fitting > least ? fitting : least, tiles = (counts.steps + most - 1) / most;
        return counts.steps < 2 * most ? counts.steps : (counts.steps + tiles - 1) / tiles;
    }

private:
    static constexpr int64_t SMALL = 64 << 10;  // bytes between pieces that a workspace holds
    static constexpr int64_t BEHIND = 4 << 10;  // bytes of NaN behind a row of zeros

    nb::object on(const Counts& counts, const nb::args& args, size_t first) {
        if (size_t(PyTuple_GET_SIZE(args.ptr())) != given_.size() + first) throw std::invalid_argument("a wrong number of tensors");
        std::vector<char*> base(places_.size(), nullptr);
        std::vector<bool> zero(places_.size(), false);
        std::vector<StepStrides> steps(counts.orders[PACK] ? places_.size() : 0);
        std::vector<nb::object> held;  // tensors whose memory is in order, where those that came in were not
        for (size_t i = 0; i < given_.size(); i++) {
            if (given_[i] < 0) continue;
            const size_t place = size_t(given_[i]);
            PyObject* tensor = PyTuple_GET_ITEM(args.ptr(), Py_ssize_t(i + first));
            if (tensor == Py_None) {
                base[place] = zeros_.data(), zero[place] = true;
                continue;
            }
            Described known;
            const bool is_known = describe(tensor, known);
            if (is_known && known.bytes() != places_[place].bytes(counts)) throw std::invalid_argument("a tensor of another size or type than the pass was made for");
            bool ready = is_known ? known.in_order() : is_contiguous(tensor);
            if (places_[place].rows == GIVEN_STEPS && !ready && is_known) ready = steps[place].of(known);
            base[place] = is_known ? known.data : address(tensor);
            if (ready && !is_negative(tensor) && !is_unwritten(tensor, base[place])) continue;
            if (!ready || !steps.empty()) held.push_back(ask(tensor, contiguous())), tensor = held.back().ptr();
            if (!steps.empty()) steps[place] = {};
            held.push_back(plain_tensor(tensor));
            base[place] = address(held.back().ptr());
        }
        std::vector<nb::object> made;
        made.reserve(new_.size());
        for (const New& one : new_) made.push_back(one(empty_strided_.ptr(), counts));
        const bool alone = work_of(counts) < ALONE;
        const int threads = alone ? 1 : int(PyLong_AsLong(nb::object(threads_()).ptr()));
        const int64_t tile = tile_of(counts);
        const std::shared_ptr<const Arrangement> lies = arranged(tile < counts.steps ? Counts(tile, counts.batch) : counts);
        // A large one is memory of torch's: it goes back afterwards, and whoever counts torch's memory sees it.
        std::vector<char*> arenas(lies->blocks.size(), nullptr);
        std::vector<Spare::Block> blocks;
        for (size_t i = 0; i < arenas.size() && lies->bytes > SMALL; i++)
            if (lies->blocks[i]) blocks.push_back(new_bytes(lies->blocks[i])), arenas[i] = address(blocks.back().second.ptr());
        for (size_t p = 0; p < places_.size(); p++)
            if (places_[p].kind == Place::made) base[p] = address(made[size_t(places_[p].index)].ptr());
        Failure failure;
        const Kernels& kernels = of_now(kernels_);
        auto computed = [&] {
            return tile < counts.steps ? by_tiles(kernels, tile, counts, base, zero, *lies, arenas, threads)
                                       : compute(kernels, counts, base, zero, steps, *lies, arenas, threads);
        };
        if (alone) {
            failure = computed();
        } else {
            nb::gil_scoped_release release;
            failure = computed();
        }
        // What is made from here on outlives this memory, and lying behind it would keep it from being used again.
        for (Spare::Block& block : blocks)
            if (Spare::calls > 0) Spare::blocks.push_back(std::move(block));
        blocks.clear(), held.clear();
        if (failure.stopped) throw nb::python_error();
        if (failure.happened) {
            const nb::object error = failed_(failure.index, failure.size, failure.behind);
            PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
            throw nb::python_error();
        }
        nb::object results = nb::steal(PyTuple_New(Py_ssize_t(outcomes_.size())));
        for (size_t i = 0; i < outcomes_.size(); i++) {
            const Outcome& out = outcomes_[i];
            nb::object tensor = made[size_t(out.made)];
            if (out.step >= 0) tensor = nb::steal(narrowed(tensor.ptr(), out.step, counts.steps));
            if (out.detach) tensor = ask(tensor.ptr(), detach());
            PyTuple_SET_ITEM(results.ptr(), Py_ssize_t(i), tensor.release().ptr());
        }
        return results;
    }

    // Multiplications and the like of a call.
    int64_t work_of(const Counts& counts) const {
        int64_t work = 0;
        for (const PassPiece& piece : pieces_)
            if (piece.kind == PassPiece::products)
                for (const ProductOf& p : piece.of) work += p.m(counts) * p.n(counts) * p.k(counts);
            else if (piece.interpreter)
                work += piece.interpreter->program().work * counts.of[piece.kind == PassPiece::loop ? int64_t(ALL) : piece.rows];
            else
                work += piece.width / 4 * counts.of[ALL];
        return work;
    }

    // --- tiles of time ------------------------------------------------------------------------------------------------------

    static constexpr int64_t PAUSE = 250000000;  // nanoseconds from one question whether to stop to the next, as within a loop

    // The same as `compute`, so many steps at a time: what is kept between pieces stays in the last cache. States go on from one
    // tile to the next, sums over rows are added up.
    Failure by_tiles(const Kernels& kernels, int64_t tile, const Counts& counts, const std::vector<char*>& base, const std::vector<bool>& zero,
                     const Arrangement& lies, std::vector<char*>& arenas, int threads) const {
        // What is kept between pieces is here where no arena was made for it: a state that has ended is read when its tile is over.
        const int64_t inside = arenas[0] ? 0 : whole_lines(lies.bytes);
        int64_t most = inside;
        for (const size_t p : totals_) most += whole_lines(places_[p].width);
        for (const Carried& state : carried_) most += whole_lines(counts.batch * state.width);
        Workspaces::Block block = workspaces().take(most + LINE);
        char* memory = block.data.get();
        memory += (LINE - int64_t(reinterpret_cast<uintptr_t>(memory)) % LINE) % LINE;
        if (!arenas[0]) arenas[0] = memory, memory += inside;
        Failure failure = {};
        int64_t asked = nanoseconds();
        for (int64_t done = 0; done < counts.steps && !failure.happened && !failure.stopped; done += tile) {
            const int64_t steps = counts.steps - done < tile ? counts.steps - done : tile, first = reverse_ ? counts.steps - done - steps : done;
            const Counts now(steps, counts.batch);
            std::vector<char*> here = base, arena = arenas;
            std::vector<bool> none = zero;
            for (size_t p = 0; p < places_.size(); p++) {
                const int64_t rows = places_[p].rows == STEPS ? first : places_[p].rows == ALL || places_[p].rows == TRAIL ? first * counts.batch : 0;
                if (here[p] && !none[p] && places_[p].kind != Place::kept && places_[p].kind != Place::within) here[p] += rows * places_[p].width;
            }
            char* at = memory;
            for (const size_t p : totals_) {
                if (done) here[p] = at;
                at += whole_lines(places_[p].width);
            }
            std::vector<char*> states;
            for (const Carried& state : carried_) {
                if (done) here[size_t(state.start.place)] = at, none[size_t(state.start.place)] = false;
                states.push_back(at), at += whole_lines(counts.batch * state.width);
            }
            failure = compute(kernels, now, here, none, {}, lies, arena, threads);
            if (nanoseconds() - asked > PAUSE) failure.stopped |= signalled(), asked = nanoseconds();
            for (const size_t p : totals_)
                if (done) wide_ ? add<double>(here[p], base[p], places_[p].width) : add<float>(here[p], base[p], places_[p].width);
            for (size_t s = 0; s < carried_.size(); s++) {
                const Spot& end = carried_[s].end;
                std::memcpy(states[s], here[size_t(end.place)] + end.offset, size_t(counts.batch * carried_[s].width));
            }
        }
        workspaces().give_back(std::move(block));
        return failure;
    }

    template <class T>
    static void add(const char* more, char* to, int64_t bytes) {
        const T* a = reinterpret_cast<const T*>(more);
        T* b = reinterpret_cast<T*>(to);
        for (int64_t i = 0; i < bytes / int64_t(sizeof(T)); i++) b[i] += a[i];
    }

    Spare::Block new_bytes(int64_t bytes) const {
        Spare::Block spare = Spare::taken(bytes);
        if (spare.second.is_valid()) return spare;
        return {bytes, made_by(empty_strided_.ptr(), new_in_order(&bytes, 1, uint8_.ptr()))};
    }

    // What a tensor that goes out is like. sizes: numbers, or -1 for T, -2 for B, -3 for T + 1, -4 for N; as users have them -5 for T, -6
    // for B, and -7 for the B of states. In one line, they are how many elements it has: a number, and so many times B and N.
    struct New {
        nb::object dtype;
        std::vector<int64_t> sizes;
        bool in_line;
        mutable std::vector<int64_t> latest;
        mutable nb::object arguments;  // of these sizes
        static constexpr size_t MOST = 64;  // dimensions, as PyTorch has them

        nb::object operator()(PyObject* empty_strided, const Counts& counts) const {
            int64_t known[] = {counts.of[GIVEN_BATCH], counts.given_batch, counts.given_batch ? counts.of[GIVEN_STEPS] / counts.given_batch : 0, counts.of[ALL], counts.steps + 1,
                               counts.batch, counts.steps};
            if (in_line) known[0] = sizes[0] + sizes[1] * counts.batch + sizes[2] * counts.of[ALL];
            const size_t dimensions = in_line ? 1 : sizes.size();
            int64_t now[MOST];
            for (size_t d = 0; d < dimensions; d++) now[d] = in_line ? known[0] : sizes[d] >= 0 ? sizes[d] : known[sizes[d] + 7];
            if (arguments.is_valid() && std::equal(latest.begin(), latest.end(), now, now + dimensions)) return made_by(empty_strided, nb::object(arguments));
            const nb::object found = new_in_order(now, dimensions, dtype.ptr());  // where anything may run, a call of other sizes too
            latest.assign(now, now + dimensions), arguments = found;
            return made_by(empty_strided, found);
        }
    };

    static PyObject* contiguous() {
        static PyObject* const name = PyUnicode_InternFromString("contiguous");
        return name;
    }

    static PyObject* detach() {
        static PyObject* const name = PyUnicode_InternFromString("detach");
        return name;
    }

    // tensor[step : step + steps], in half the time that `narrow` takes
    static PyObject* narrowed(PyObject* tensor, int64_t step, int64_t steps) {
        const nb::object from = nb::int_(step), end = nb::int_(step + steps), slice = nb::steal(PySlice_New(from.ptr(), end.ptr(), nullptr));
        PyObject* found = PyObject_GetItem(tensor, slice.ptr());
        if (!found) throw nb::python_error();
        return found;
    }

    static Size size_of(const std::vector<int64_t>& n, size_t at) { return {n.at(at), n.at(at + 1)}; }
    static Side side_of(const std::vector<int64_t>& n, size_t at) { return {n.at(at), n.at(at + 1), n.at(at + 2), n.at(at + 3), n.at(at + 4)}; }

    // (kind, interpreter, rows, reverse, spots); (kind, products); (copy, from, to, width, rows); (delay, from, to, width,
    // reverse, start); (ends, from, to, width, reverse); or (move, from, to, width, order)
    PassPiece piece(nb::handle list) {
        PassPiece made = {};
        made.kind = PassPiece::Kind(nb::cast<int64_t>(list[0]));
        if (made.kind == PassPiece::program || made.kind == PassPiece::loop) {
            kept_.push_back(nb::borrow(list[1]));
            made.interpreter = &nb::cast<const Interpreter&>(kept_.back());
            made.rows = nb::cast<int64_t>(list[2]), made.reverse = nb::cast<bool>(list[3]);
            for (const nb::handle one : nb::borrow<nb::list>(list[4])) made.spots.push_back(spot_of(one));
            if (int64_t(made.spots.size()) != made.interpreter->tensors()) throw std::invalid_argument("a wrong number of spots");
        } else if (made.kind == PassPiece::products) {
            for (const nb::handle one : nb::borrow<nb::list>(list[1])) {
                const auto n = numbers(one);
                made.of.push_back({n.at(0) != 0, size_of(n, 1), size_of(n, 3), size_of(n, 5), side_of(n, 7), side_of(n, 12), side_of(n, 17), side_of(n, 22),
                                   side_of(n, 27)});
            }
        } else {
            made.from = spot_of(list[1]), made.to = spot_of(list[2]);
            made.width = nb::cast<int64_t>(list[3]);
            if (made.kind == PassPiece::copy || made.kind == PassPiece::move)
                made.rows = nb::cast<int64_t>(list[4]);
            else
                made.reverse = nb::cast<bool>(list[4]);
            if (made.kind == PassPiece::delay) made.start = spot_of(list[5]);
        }
        return made;
    }

    // Where values lie in a call: the latest one's again, or made anew. The call holds it, as one of other sizes may come beside it
    // wherever Python runs.
    std::shared_ptr<const Arrangement> arranged(const Counts& counts) {
        if (latest_ && latest_->serves(counts, counts.orders[PACK])) return latest_;
        latest_ = std::make_shared<const Arrangement>(arrange(places_, counts));
        return latest_;
    }

    Failure compute(const Kernels& kernels, const Counts& counts, std::vector<char*>& base, std::vector<bool>& zero,
                    const std::vector<StepStrides>& steps, const Arrangement& lies, std::vector<char*>& arenas, int threads) const {
        std::vector<Call> calls(pieces_.size(), Call{});
        std::vector<std::vector<Pointer>> pointers(pieces_.size());
        std::vector<std::vector<Matrices>> products(pieces_.size());
        const int64_t inside = arenas[0] || lies.bytes > SMALL ? 0 : lies.bytes;
        int64_t most = 0;
        // Sizes first: they say how much memory is needed.
        for (size_t i = 0; i < pieces_.size(); i++) {
            const PassPiece& piece = pieces_[i];
            int64_t bytes = 0;
            if (piece.kind == PassPiece::products) {
                for (const ProductOf& p : piece.of) {
                    Matrices m = {};
                    m.sums = p.sums, m.m = p.m(counts), m.n = p.n(counts), m.k = p.k(counts);
                    products[i].push_back(m);
                }
                bytes = (wide_ ? kernels.multiply_bytes64 : kernels.multiply_bytes32)(products[i].data(), int64_t(products[i].size()), threads);
            } else if (piece.kind == PassPiece::program || piece.kind == PassPiece::loop) {
                Call& call = calls[i];
                const bool loop = piece.kind == PassPiece::loop;
                call.steps = loop ? counts.steps : 1, call.batch = loop ? counts.batch : counts.of[piece.rows];
                if (loop && !counts.sizes.empty()) call.sizes = counts.sizes.data(), call.offsets = counts.offsets.data();
                call.reverse = piece.reverse, call.threads = threads, call.poison = poisoned, call.stop = signalled;
                bytes = kernels.workspace(piece.interpreter->program(), call);
            }
            if (bytes > most) most = bytes;
        }
        Workspaces::Block block = workspaces().take(inside + most + LINE);
        char* memory = block.data.get();
        memory += (LINE - int64_t(reinterpret_cast<uintptr_t>(memory)) % LINE) % LINE;
        if (!arenas[0]) arenas[0] = memory;
        for (size_t i = 0; i < arenas.size() && poisoned; i++)
            if (arenas[i]) __builtin_memset(arenas[i], 0xff, size_t(lies.blocks[i]));
        for (size_t p = 0; p < places_.size(); p++) {
            const Place& place = places_[p];
            if (place.kind == Place::kept) base[p] = arenas[size_t(lies.at[p] / BLOCK)] + lies.at[p] % BLOCK;
            if (place.kind != Place::within) continue;
            base[p] = base[size_t(place.index)], zero[p] = zero[size_t(place.index)];  // of zeros there is one row
            if (!zero[p]) base[p] += place.one + place.batches * counts.batch + place.all * counts.of[ALL];
        }
        Failure failure = {};
        for (size_t i = 0; i < pieces_.size() && !failure.happened && !failure.stopped; i++) {
            const PassPiece& piece = pieces_[i];
            if (piece.kind == PassPiece::products) {
                for (size_t j = 0; j < piece.of.size(); j++) bind(piece.of[j], products[i][j], base, zero);
                (wide_ ? kernels.multiply64 : kernels.multiply32)(products[i].data(), int64_t(products[i].size()), threads, memory + inside);
            } else if (piece.kind == PassPiece::copy) {
                rows(piece.from, 0, piece.to, 0, counts.of[piece.rows], piece.width, base, zero);
            } else if (piece.kind == PassPiece::move) {
                move(piece, counts, base, zero, steps[size_t(piece.from.place)], threads);
            } else if (piece.kind == PassPiece::delay) {
                delay(piece, counts, base, zero);
            } else if (piece.kind == PassPiece::ends) {
                ends(piece, counts, base, zero);
            } else {
                for (const Spot& spot : piece.spots)
                    pointers[i].push_back({base[size_t(spot.place)] + spot.offset, zero[size_t(spot.place)] ? 0 : spot.stride});
                piece.interpreter->bind(calls[i], pointers[i].data());
                // A program without real numbers of its own is one of float32, wherever it runs.
                const bool wide = piece.interpreter->wide();
                failure = (wide ? kernels.run64 : kernels.run32)(piece.interpreter->program(), calls[i], memory + inside);
            }
        }
        workspaces().give_back(std::move(block));
        return failure;
    }

    void bind(const ProductOf& p, Matrices& m, const std::vector<char*>& base, const std::vector<bool>& zero) const {
        auto at = [&](const Side& side, int64_t& row, int64_t& column) -> char* {
            const bool none = side.place >= 0 && zero[size_t(side.place)];
            row = none && side.along == 1 ? 0 : side.row, column = none && side.along == 2 ? 0 : side.column;
            return side.place < 0 ? nullptr : base[size_t(side.place)] + side.offset;
        };
        int64_t column;
        m.a = at(p.a, m.a_row, m.a_column);
        if (m.k == 1 && !p.sums) m.a_column = 1;
        m.b = at(p.b, m.b_row, m.b_column);
        m.start = at(p.start, m.start_row, column);
        m.times = at(p.times, m.times_row, column);
        m.out = at(p.out, m.out_row, column);
    }

    // Rows in order, `begin` behind the beginning of one place, to `at` behind that of another.
    static void rows(const Spot& from, int64_t begin, const Spot& to, int64_t at, int64_t count, int64_t width, const std::vector<char*>& base,
                     const std::vector<bool>& zero) {
        char* target = base[size_t(to.place)] + to.offset + at * width;
        if (zero[size_t(from.place)])
            __builtin_memset(target, 0, size_t(count * width));
        else
            __builtin_memcpy(target, base[size_t(from.place)] + from.offset + begin * width, size_t(count * width));
    }

    static void delay(const PassPiece& p, const Counts& c, const std::vector<char*>& base, const std::vector<bool>& zero) {
        if (p.reverse)
            for (int64_t t = 0; t < c.steps; t++) {
                const int64_t at = c.offset(t), on = c.size(t + 1);  // rows that ran at the step behind it
                if (on) rows(p.from, c.offset(t + 1), p.to, at, on, p.width, base, zero);
                rows(p.start, on, p.to, at + on, c.size(t) - on, p.width, base, zero);
            }
        else
            for (int64_t t = 0; t < c.steps; t++)
                rows(t ? p.from : p.start, t ? c.offset(t - 1) : 0, p.to, c.offset(t), c.size(t), p.width, base, zero);
    }

    static void move(const PassPiece& p, const Counts& c, const std::vector<char*>& base, const std::vector<bool>& zero, const StepStrides& lie, int threads) {
        constexpr Rows FROM[] = {GIVEN_STEPS, ALL, GIVEN_BATCH, BATCH}, TO[] = {ALL, GIVEN_STEPS, BATCH, GIVEN_BATCH};
        const int64_t count = c.of[TO[p.rows]];
        const size_t from = size_t(p.from.place);
        if (zero[from] || !c.orders[p.rows]) return rows(p.from, 0, p.to, 0, count, p.width, base, zero);
        Moving moving = {base[from] + p.from.offset, c.of[FROM[p.rows]], lie.inner, lie.outer_step, lie.inner_step, c.orders[p.rows], count, p.width,
                         base[size_t(p.to.place)] + p.to.offset};
        if (!lie.outer_step) moving.inner = 1, moving.outer_step = p.width;
        moving.run(threads);
    }

    static void ends(const PassPiece& p, const Counts& c, const std::vector<char*>& base, const std::vector<bool>& zero) {
        if (p.reverse) return rows(p.from, 0, p.to, 0, c.batch, p.width, base, zero);
        for (int64_t t = 0; t < c.steps; t++) {
            const int64_t on = c.size(t + 1);
            rows(p.from, c.offset(t) + on, p.to, on, c.size(t) - on, p.width, base, zero);
        }
    }

    // Of a state of the loop: where it begins, where it ends, and bytes of a row.
    struct Carried {
        Spot start, end;
        int64_t width;
    };

    const Kernels& kernels_;
    bool wide_;
    bool tiled_, reverse_ = false;  // whether it can run so many steps at a time; which way
    std::vector<size_t> totals_;    // places that a tile adds something to
    std::vector<Carried> carried_;
    int64_t row_bytes_ = 0;         // of all values of a row of a step
    std::vector<int64_t> given_;  // the place of every input, or -1
    nb::object failed_, threads_, empty_, empty_strided_, uint8_;
    std::vector<Place> places_;
    std::vector<char> zeros_;  // a row of them; where memory is poisoned, NaN behind it
    std::vector<New> new_;
    std::vector<nb::object> kept_;
    std::vector<PassPiece> pieces_;
    std::vector<Outcome> outcomes_;
    std::shared_ptr<const Arrangement> latest_;
};

}  // namespace
}  // namespace elman
