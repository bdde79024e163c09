// The threads that run a loop.
#pragma once

#include <cstdint>

namespace elman {

// Calls work(argument, thread, threads) on up to `threads` threads at once, and returns when all are done. It may be
// fewer threads: in a forked child it is one. Where torch has loaded an OpenMP runtime, its team is used: two teams
// that take turns would spin against each other.
void run_team(int threads, void (*work)(void*, int, int), void* argument);

// Lets somebody else have the processor.
void give_way();

// A clock that never goes back.
int64_t nanoseconds();

// "openmp" or "own": which threads these are.
const char* team_name();

}  // namespace elman
