// The threads that run a loop.
#pragma once

#include <cstdint>

namespace elman {

// Calls work(argument, thread, threads) on up to `threads` threads at once, and returns when all are done. It may be
// fewer threads: in a forked child it is one, and so it is for a while after `lost`. Where torch has loaded an OpenMP
// runtime, its team is used: two teams that take turns would spin against each other.
void run_team(int threads, void (*work)(void*, int, int), void* argument);

// Nanoseconds from which on a wait for another thread means that another process has its processor: waking it takes a
// tenth of that, a turn of another process several times as much.
constexpr int64_t LATE = 500000;

// So many nanoseconds were lost by waiting for a thread whose processor another process had. The next calls go without
// help for many times as long, so that little is lost where somebody always has it. No bits depend on it.
void lost(int64_t waited);

// Lets somebody else have the processor.
void give_way();

// A clock that never goes back.
int64_t nanoseconds();

// "openmp" or "own": which threads these are.
const char* team_name();

}  // namespace elman
