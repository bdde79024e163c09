// Checks team.cpp: after time was lost by waiting for another thread, calls go without help, for a while.
// Prints a line per check, and ends with 1 if one failed. A machine that others use as well may take a thread away at any
// moment, so what should have help is asked again a few times.
//
//   g++ -O1 -std=c++17 -Inative native/tests/team.cpp native/team.cpp -pthread -ldl        threads of its own
//   … -Wl,--no-as-needed -fopenmp                                                           OpenMP's
#include "team.hpp"

#include <chrono>
#include <cstdio>
#include <thread>

namespace {

int failures = 0;

void report(bool good, const char* what) {
    printf("%-4s %s: %s\n", good ? "ok" : "FAIL", elman::team_name(), what);
    if (!good) failures++;
}

void sleep(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

struct Shares {
    int mine, other;  // milliseconds
    int threads = 0;
};

// How many threads there were, of two, where the shares take so long.
int run(int mine, int other) {
    Shares shares = {mine, other};
    elman::run_team(2, [](void* argument, int thread, int threads) {
        Shares& s = *static_cast<Shares*>(argument);
        if (thread == 0) s.threads = threads;
        sleep(thread ? s.other : s.mine);
    }, &shares);
    return shares.threads;
}

constexpr int LONG = 40;  // milliseconds: a wait that is no longer than one's own share is none

// Whether two threads come after shares like these, at least once.
bool helped_after(int mine, int other) {
    for (int i = 0; i < 10; i++) {
        if (run(mine, other) == 2 && run(LONG, LONG) == 2) return true;
        sleep(100 << i / 2);
    }
    return false;
}

}  // namespace

int main() {
    report(helped_after(LONG, LONG), "two threads");
    report(helped_after(LONG, LONG + LONG / 2), "two threads where one has more to do");
    run(0, LONG);
    report(run(0, 0) == 1, "without help after a long wait");
    report(helped_after(LONG, LONG), "two threads again");
    elman::lost(int64_t(1) << 60);
    report(run(0, 0) == 1, "without help after a very long one");
    report(helped_after(LONG, LONG), "but not for ever");
    return failures != 0;
}
