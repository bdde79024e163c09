// Where the values of a pass lie (pass.hpp): what is kept between its pieces shares memory by lifetime, block by block.
//
// Part of bind.cpp.
#pragma once

namespace elman {
namespace {

// How many rows something has: 1, B, N, T, those of a trail, N + B, or of sequences and states as users have them.
enum Rows { ONE, BATCH, ALL, STEPS, TRAIL, GIVEN_STEPS, GIVEN_BATCH, ROWS };

// An order in which rows are read to be written one after the other: users' steps as packed rows, and back; users' states as those
// of pieces, and back.
enum Order { PACK, UNPACK, START, END, ORDERS };

// T, B and N of a call. sizes, offsets: as in `Call`, empty where every step has B rows. orders: numbers of rows; null for rows that
// stay where they are.
struct Counts {
    int64_t steps, batch, of[ROWS], given_batch = 0;  // that of users' sequences
    std::vector<int64_t> sizes, offsets;
    const int64_t* orders[ORDERS] = {};

    Counts(int64_t steps, int64_t batch) : steps(steps), batch(batch), of{1, batch, steps * batch, steps, steps * batch + batch, 0, 0} {}

    // Of sequences that are packed by the call. states: whether states change places with their rows, or are those of pieces.
    Counts(const Pieces& pieces, bool states) : Counts(pieces.sizes) {
        given_batch = int64_t(pieces.last.size()), of[GIVEN_STEPS] = int64_t(pieces.places.size()), of[GIVEN_BATCH] = states ? given_batch : batch;
        orders[PACK] = pieces.rows.data(), orders[UNPACK] = pieces.places.data();
        if (states) orders[START] = pieces.owner.data(), orders[END] = pieces.last.data();
    }

    explicit Counts(std::vector<int64_t> rows) : steps(int64_t(rows.size())), batch(rows.empty() ? 0 : rows[0]), sizes(std::move(rows)) {
        int64_t all = 0;
        offsets.reserve(sizes.size());
        for (const int64_t size : sizes) offsets.push_back(all), all += size;
        of[ONE] = 1, of[BATCH] = batch, of[ALL] = all, of[STEPS] = steps, of[TRAIL] = all + batch, of[GIVEN_STEPS] = of[GIVEN_BATCH] = 0;
    }

    int64_t size(int64_t t) const { return t >= steps ? 0 : sizes.empty() ? batch : sizes[size_t(t)]; }
    int64_t offset(int64_t t) const { return sizes.empty() ? t * batch : offsets[size_t(t)]; }
};

// Where values lie. given: an input; made: a tensor that goes out; kept: in the pass's own memory, from its first piece to its
// last; within: in another place, behind its beginning.
struct Place {
    enum Kind { given, made, kept, within } kind;
    int64_t index;         // of the input or the tensor; of the place that it lies in
    int64_t width;         // bytes of a row
    int64_t rows;          // Rows
    int64_t first, last;   // pieces
    int64_t one, batches, all;  // within: bytes behind, and so many times B and N; else bytes that it has beside those of its rows

    int64_t bytes(const Counts& c) const { return width * c.of[rows] + one + batches * c.batch + all * c.of[ALL]; }
};

// Bytes of a block of memory. glibc gives a piece of more than 32 MiB back to the system at once: at the next call each of its
// pages is a fault.
constexpr int64_t BLOCK = 31 << 20;

int64_t whole_lines(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

// Where what is kept between pieces lies for calls of certain sizes, in how many bytes, and how many of them each block has: what
// begins at `at` lies `at % BLOCK` behind the beginning of block `at / BLOCK`.
struct Arrangement {
    int64_t of[ROWS], bytes;
    std::vector<int64_t> at, blocks;

    // Whether it is that of a call, or, if room is all that matters, one that has room for it and not far too much.
    bool serves(const Counts& counts, bool room) const {
        for (int r = 0; r < ROWS; r++)
            if (room ? of[r] < counts.of[r] || of[r] > 2 * counts.of[r] : of[r] != counts.of[r]) return false;
        return true;
    }
};

// Each value behind all that it would meet there; within one block, or, where it is larger, from the beginning of one on.
Arrangement arrange(const std::vector<Place>& places, const Counts& counts) {
    Arrangement made = {{}, 0, std::vector<int64_t>(places.size(), 0), {0}};
    for (int r = 0; r < ROWS; r++) made.of[r] = counts.of[r];
    auto size_of = [&](size_t p) { return whole_lines(places[p].width * counts.of[places[p].rows]); };
    std::vector<int64_t>& at = made.at;
    std::vector<size_t> placed;
    for (size_t p = 0; p < places.size(); p++) {
        if (places[p].kind != Place::kept) continue;
        const int64_t size = size_of(p);
        for (bool moved = true; moved;) {
            moved = false;
            for (const size_t q : placed) {
                const bool together = places[q].first <= places[p].last && places[p].first <= places[q].last;
                const int64_t stop = at[q] + size_of(q);
                if (together && at[p] < stop && at[q] < at[p] + size) at[p] = stop, moved = true;
            }
            if (at[p] % BLOCK != 0 && at[p] % BLOCK + size > BLOCK) at[p] += BLOCK - at[p] % BLOCK, moved = true;
        }
        placed.push_back(p);
        if (at[p] + size > made.bytes) made.bytes = at[p] + size;
        const size_t block = size_t(at[p] / BLOCK);
        if (block >= made.blocks.size()) made.blocks.resize(block + 1, 0);
        if (at[p] % BLOCK + size > made.blocks[block]) made.blocks[block] = at[p] % BLOCK + size;
    }
    return made;
}

}  // namespace
}  // namespace elman
