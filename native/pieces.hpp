// Which steps of a batch happen, cut into pieces and packed: the fast way of elman/segments/pieces.py, which says what it means.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace elman {

// Pieces in the order of the packed rows, the longest first.
struct Pieces {
    std::vector<int64_t> owner;        // [P], the row of each
    std::vector<uint8_t> fresh;        // [P], whether a reset stands at or before its first step
    std::vector<int64_t> first, last;  // [B], a row's first and last piece in time; -1 where it has none
    std::vector<int64_t> sizes;        // [steps of the longest], how many are longer than t
    std::vector<int64_t> rows;         // [N], t B + b of each packed row
    std::vector<int64_t> places;       // [T B], where the packed row of a step lies, N where it does not happen
    bool in_order = true;              // rows are 0 ... N - 1
    bool alone = false;                // each row is one piece, which starts from the row's state
};

// lengths [B], or null: steps. happens [T, B], or null: all. resets [T, B], or null: none. Lengths are in 0 ... T.
inline Pieces cut(int64_t steps, int64_t batch, const int64_t* lengths, const uint8_t* happens, const uint8_t* resets) {
    struct Stretch {
        int64_t owner, start, length;
        bool fresh;
    };
    std::vector<Stretch> found;
    std::vector<int64_t> times;  // of all steps that happen, row after row; empty where they are simply 0, 1, 2, ...
    const bool plain = !happens && !resets;
    int64_t longest = 0, total = 0;
    for (int64_t b = 0; b < batch; ++b) {
        const int64_t end = lengths ? lengths[b] : steps;
        if (plain) {
            if (end) found.push_back({b, 0, end, false});
            total += end;
            if (end > longest) longest = end;
            continue;
        }
        bool pending = false;  // a reset stands between the step before and here
        bool any = false;
        for (int64_t t = 0; t < end; ++t) {
            pending |= resets && resets[t * batch + b];
            if (happens && !happens[t * batch + b]) continue;
            if (!any || pending) found.push_back({b, static_cast<int64_t>(times.size()), 0, pending});
            any = true;
            pending = false;
            times.push_back(t);
            if (++found.back().length > longest) longest = found.back().length;
        }
    }
    if (!plain) total = static_cast<int64_t>(times.size());

    Pieces made;
    const int64_t count = static_cast<int64_t>(found.size());
    // How many are longer than t, from how many are of each length; and so the place of each, equal ones in order.
    made.sizes.assign(static_cast<size_t>(longest), 0);
    for (const Stretch& piece : found) ++made.sizes[piece.length - 1];
    for (int64_t t = longest - 1; t > 0; --t) made.sizes[t - 1] += made.sizes[t];
    std::vector<int64_t> next(static_cast<size_t>(longest) + 1, 0);  // the next place of a piece of this length
    for (int64_t length = 1; length < longest; ++length) next[length] = made.sizes[length];
    made.owner.resize(count);
    made.fresh.resize(count);
    made.first.assign(batch, -1);
    made.last.assign(batch, -1);
    std::vector<int64_t> place(count);
    for (int64_t i = 0; i < count; ++i) {
        const Stretch& piece = found[i];
        const int64_t at = place[i] = next[piece.length]++;
        made.owner[at] = piece.owner;
        made.fresh[at] = piece.fresh;
        if (made.first[piece.owner] < 0) made.first[piece.owner] = at;
        made.last[piece.owner] = at;
    }
    made.alone = count == batch;
    for (int64_t b = 0; b < batch; ++b) made.alone &= made.first[b] >= 0;
    for (int64_t i = 0; i < count; ++i) made.alone &= !made.fresh[i];
    std::vector<int64_t> offset(static_cast<size_t>(longest) + 1, 0);
    for (int64_t t = 0; t < longest; ++t) offset[t + 1] = offset[t] + made.sizes[t];
    made.rows.resize(total);
    if (plain) {  // written in order
        int64_t at = 0;
        for (int64_t t = 0; t < longest; ++t)
            for (int64_t p = 0; p < made.sizes[t]; ++p) made.rows[at++] = t * batch + made.owner[p];
    } else {
        for (int64_t i = 0; i < count; ++i) {
            const Stretch& piece = found[i];
            for (int64_t k = 0; k < piece.length; ++k)
                made.rows[offset[k] + place[i]] = times[piece.start + k] * batch + piece.owner;
        }
    }
    made.places.assign(steps * batch, total);
    for (int64_t n = 0; n < total; ++n) {
        made.in_order &= made.rows[n] == n;
        made.places[made.rows[n]] = n;
    }
    return made;
}

}  // namespace elman
