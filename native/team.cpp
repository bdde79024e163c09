#include "team.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__linux__)
#include <link.h>
#endif

namespace elman {

namespace {

using Work = void (*)(void*, int, int);

std::atomic<bool> forked{false};  // in a child of fork() neither team exists any more

// --- the OpenMP runtime that is already there ------------------------------------------------------------------------------

struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*thread)() = nullptr;
    int (*threads)() = nullptr;
    explicit operator bool() const { return parallel && thread && threads; }
};

#if defined(__linux__) && !defined(ELMAN_OWN_TEAM)
int look_at(dl_phdr_info* info, size_t, void* found) {
    const std::string path = info->dlpi_name ? info->dlpi_name : "";
    const std::string file = path.substr(path.rfind('/') + 1);
    if (file.find("libgomp") == 0 || file.find("libiomp") == 0 || file.find("libomp") == 0) {
        auto& best = *static_cast<std::string*>(found);
        if (best.empty() || path.find("/torch/") != std::string::npos) best = path;
    }
    return 0;
}
#endif

OpenMP find_openmp() {
    OpenMP found;
#if defined(__linux__) && !defined(ELMAN_OWN_TEAM)  // for tests: CMakeLists.txt
    std::string path;
    dl_iterate_phdr(look_at, &path);
    void* library = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (library) {
        found.parallel = reinterpret_cast<decltype(found.parallel)>(dlsym(library, "GOMP_parallel"));
        found.thread = reinterpret_cast<decltype(found.thread)>(dlsym(library, "omp_get_thread_num"));
        found.threads = reinterpret_cast<decltype(found.threads)>(dlsym(library, "omp_get_num_threads"));
    }
#endif
    return found;
}

const OpenMP& openmp() {
    static const OpenMP found = find_openmp();
    return found;
}

struct Job {
    Work work;
    void* argument;
    int64_t share = 0;  // nanoseconds that the thread that called has worked itself

    void run(int thread, int threads) {
        const int64_t begun = thread ? 0 : nanoseconds();
        work(argument, thread, threads);
        if (thread == 0) share = nanoseconds() - begun;
    }
};

void in_openmp(void* data) {
    static_cast<Job*>(data)->run(openmp().thread(), openmp().threads());
}

// --- threads of our own, parked between calls ------------------------------------------------------------------------------

class Pool {
public:
    void run(int threads, Job& job) {
        std::lock_guard<std::mutex> one_at_a_time(calls_);
        while (int(workers_.size()) < threads - 1) {
            const int number = int(workers_.size()) + 1;
            workers_.emplace_back([this, number] { serve(number); });
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = job, threads_ = threads, open_ = threads - 1, round_++;
        }
        begin_.notify_all();
        job.run(0, threads);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return open_ == 0; });
    }

private:
    void serve(int number) {
        long seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            begin_.wait(lock, [&] { return round_ != seen; });
            seen = round_;
            if (number >= threads_) continue;
            Job job = job_;
            const int threads = threads_;
            lock.unlock();
            job.run(number, threads);
            lock.lock();
            if (--open_ == 0) done_.notify_one();
        }
    }

    std::mutex calls_, mutex_;
    std::condition_variable begin_, done_;
    std::vector<std::thread> workers_;
    Job job_ = {};
    int threads_ = 0, open_ = 0;
    long round_ = 0;
};

Pool& pool() {
    static Pool& made = *new Pool;  // never destroyed: its threads wait until the process ends
    return made;
}

#if defined(__unix__) || defined(__APPLE__)
const int noticed = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#else
const int noticed = 0;
#endif

// --- without help -----------------------------------------------------------------------------------------------------------

constexpr int64_t REST = 16;            // times what was lost
constexpr int64_t LONGEST = 125000000;  // nanoseconds that count as lost

std::atomic<int64_t> helped_from{0};

}  // namespace

void lost(int64_t waited) {
    helped_from.store(nanoseconds() + REST * std::min(waited, LONGEST), std::memory_order_relaxed);
}

void run_team(int threads, Work work, void* argument) {
    (void)noticed;
    if (threads <= 1 || forked) return work(argument, 0, 1);
    const int64_t begun = nanoseconds();
    if (begun < helped_from.load(std::memory_order_relaxed)) return work(argument, 0, 1);
    Job job = {work, argument};
    if (openmp())
        openmp().parallel(in_openmp, &job, unsigned(threads), 0);
    else
        pool().run(threads, job);
    const int64_t waited = nanoseconds() - begun - job.share;  // for the others, before or after
    if (waited > LATE + job.share) lost(waited);               // no share is more than twice as large as that of the first
}

void give_way() {
#if defined(__unix__) || defined(__APPLE__)
    sched_yield();
#else
    std::this_thread::yield();
#endif
}

int64_t nanoseconds() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

const char* team_name() { return openmp() ? "openmp" : "own"; }

}  // namespace elman
